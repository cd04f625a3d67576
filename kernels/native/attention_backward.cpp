// Interval attention backward: weights are made again from the logsumexp (FlashAttention, arXiv 2205.14135).
#include "attention.h"

namespace {

struct alignas(64) Backward {
  float key[MAX_DIM * KEYS], value[MAX_DIM * KEYS];  // transposed
  float weight[ROWS * KEYS], grad[ROWS * KEYS];
  float grad_key[KEYS * MAX_DIM], grad_value[KEYS * MAX_DIM];
  Edge edge;
};

// Weights and gradients of the scores of one tile; 0 where a row does not see a key.
void weigh_tile(Backward& s, const Attention& x, long head, long first, int rows, int keys) {
  int dim = (int)x.dim, width = (int)divide_up(keys, LANES) * LANES;
  for (int i = 0; i < rows; i += GROUP) {
    int group = (int)least(GROUP, rows - i);
    int from = s.edge.low[i] / LANES * LANES, to = (int)divide_up(s.edge.high[i + group - 1], LANES) * LANES;
    if (s.edge.low[i] >= s.edge.high[i + group - 1]) from = to = 0;
    if (from < to) {
      product<false>(group, to - from, dim, at(x.q, first + i, head), x.q.row, 1, s.key + from, KEYS,
                     s.weight + i * KEYS + from, KEYS);
      product<false>(group, to - from, dim, at(x.grad_out, first + i, head), x.grad_out.row, 1, s.value + from, KEYS,
                     s.grad + i * KEYS + from, KEYS);
    }
    for (int r = i; r < i + group; ++r) {
      float *weight = s.weight + r * KEYS, *grad = s.grad + r * KEYS;
      Vec lse = splat(x.lse2[head * x.queries + first + r]), delta = splat(x.delta[head * x.queries + first + r]);
      Int low = splat(s.edge.low[r]), high = splat(s.edge.high[r]), lane;
      for (int n = 0; n < LANES; ++n) lane[n] = n;
      for (int c = 0; c < width; c += LANES) {
        Vec p = Vec{}, g = Vec{};
        if (c >= from && c < to) {
          p = exp2_of(load(weight + c) - lse);
          if (!s.edge.whole || keys < KEYS) p = (lane + c >= low) & (lane + c < high) ? p : Vec{};
          g = p * (load(grad + c) - delta) * x.scale;
        }
        store(weight + c, p);
        store(grad + c, g);
      }
    }
  }
}

void add_tile(Backward& s, const Attention& x, long head, const Matrix& grad_q, long key, long first, int rows,
              int keys) {
  int dim = (int)x.dim;
  long kv_head = head / (x.heads / x.kv_heads);
  for (int i = 0; i < rows; i += GROUP) {
    int group = (int)least(GROUP, rows - i), from = s.edge.low[i], to = s.edge.high[i + group - 1];
    if (from < to)
      product<true>(group, dim, to - from, s.grad + i * KEYS + from, KEYS, 1, at(x.k, key + from, kv_head), x.k.row,
                    at(grad_q, first + i, head), grad_q.row);
  }
  for (int j = 0; j < keys; j += GROUP) {
    int group = (int)least(GROUP, keys - j), from, to;
    s.edge.seers(rows, j, j + group, &from, &to);
    if (from >= to) continue;
    product<true>(group, dim, to - from, s.weight + from * KEYS + j, 1, KEYS, at(x.grad_out, first + from, head),
                  x.grad_out.row, s.grad_value + j * dim, dim);
    product<true>(group, dim, to - from, s.grad + from * KEYS + j, 1, KEYS, at(x.q, first + from, head), x.q.row,
                  s.grad_key + j * dim, dim);
  }
}

void backward_keys(Backward& s, const Attention& x, long kv_head, const Matrix& grad_q, long key, int keys) {
  int dim = (int)x.dim;
  long repeats = x.heads / x.kv_heads;
  const int64_t* start = x.start + x.group[kv_head] * x.queries;
  long low = 0, high = x.queries;  // the queries that see any of the keys
  for (long half = x.queries; half > 0; half /= 2)
    while (low + half <= x.queries && x.end[low + half - 1] <= key) low += half;
  for (long half = x.queries; half > 0; half /= 2)
    while (high - half >= 0 && start[high - half] >= key + keys) high -= half;
  std::memset(s.grad_key, 0, keys * dim * sizeof(float));
  std::memset(s.grad_value, 0, keys * dim * sizeof(float));
  if (low < high) {
    transpose(at(x.k, key, kv_head), x.k.row, keys, dim, x.scale * LOG2E, s.key, KEYS);
    transpose(at(x.v, key, kv_head), x.v.row, keys, dim, 1.0f, s.value, KEYS);
  }
  for (long head = kv_head * repeats; head < (kv_head + 1) * repeats; ++head)
    for (long first = low; first < high; first += ROWS) {
      int rows = (int)least(ROWS, high - first);
      s.edge.set(start + first, x.end + first, rows, key, keys);
      weigh_tile(s, x, head, first, rows, keys);
      add_tile(s, x, head, grad_q, key, first, rows, keys);
    }
  for (int j = 0; j < keys; ++j) {
    std::memcpy(at(x.grad_k, key + j, kv_head), s.grad_key + j * dim, dim * sizeof(float));
    std::memcpy(at(x.grad_v, key + j, kv_head), s.grad_value + j * dim, dim * sizeof(float));
  }
}

// What a row's tiles need of it, and the gradients of the extra entry.
void prepare_row(const Attention& x, long row) {
  for (long head = 0; head < x.heads; ++head) {
    const float *out = at(x.out, row, head), *grad = at(x.grad_out, row, head);
    float lse = x.lse[row * x.heads + head];
    if (lse == -INFINITY) lse = INFINITY;  // it sees nothing: weights of 0, not of exp(-inf + inf)
    Vec sum = Vec{};
    for (int d = 0; d < x.dim; d += LANES) sum += load(out + d) * load(grad + d);
    float delta = total(sum);
    x.delta[head * x.queries + row] = delta;
    x.lse2[head * x.queries + row] = lse * LOG2E;
    if (!x.extra_score) continue;
    float weight = std::exp(x.extra_score[row * x.heads + head] - lse), against = 0;
    if (x.extra_value.data) {
      const float* value = at(x.extra_value, row, head);
      float* grad_value = at(x.grad_value, row, head);
      Vec dot = Vec{};
      for (int d = 0; d < x.dim; d += LANES) {
        dot += load(value + d) * load(grad + d);
        store(grad_value + d, load(grad + d) * weight);
      }
      against = total(dot);
    }
    x.grad_score[row * x.heads + head] = weight * (against - delta);
  }
}

}  // namespace

extern "C" {

// Segments of keys are computed side by side; each adds to a gradient of the queries of its own, summed at the end in
// one order, so that the result does not depend on which thread was faster.
void braid_attention_backward(const Attention* call) {
  const Attention& x = *call;
  int threads = (int)x.threads;
  parallel(threads, divide_up(x.queries, ROWS), [&](long block) {
    for (long row = block * ROWS; row < least((block + 1) * ROWS, x.queries); ++row) prepare_row(x, row);
  });
  long tiles = divide_up(x.keys, KEYS), plane = x.queries * x.heads * x.dim;
  parallel(threads, x.segments * x.kv_heads, [&](long task) {
    static thread_local Backward scratch;
    long segment = task / x.kv_heads, kv_head = task % x.kv_heads;
    Matrix grad_q = x.grad_q;
    if (segment) grad_q.data = x.parts + (segment - 1) * plane;
    for (long tile = tiles * segment / x.segments; tile < tiles * (segment + 1) / x.segments; ++tile)
      backward_keys(scratch, x, kv_head, grad_q, tile * KEYS, (int)least(KEYS, x.keys - tile * KEYS));
  });
  if (x.segments > 1)
    parallel(threads, divide_up(x.queries, ROWS), [&](long block) {
      long last = least((block + 1) * ROWS, x.queries) * x.heads * x.dim;
      for (long segment = 0; segment < x.segments - 1; ++segment)
        for (long i = block * ROWS * x.heads * x.dim; i < last; i += LANES)
          store(x.grad_q.data + i, load(x.grad_q.data + i) + load(x.parts + segment * plane + i));
    });
}
}
