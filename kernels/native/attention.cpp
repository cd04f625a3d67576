// Interval attention in fp32: online softmax forward (FlashAttention, arXiv 2205.14135), recomputation backward.
//
// Query n of head h sees keys [start[group of h][n], end[n]); neither bound decreases with n. Scores are kept in
// units of log 2. Along the edges of intervals products are cut to what is visible, in groups of rows and vectors.
#include <cmath>

#include "tiles.h"

namespace {

constexpr int ROWS = 64, KEYS = 128;  // queries and keys of a tile
constexpr int MAX_DIM = 256;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

}  // namespace

extern "C" {

struct Matrix {  // [tokens, heads, dim]: channels are neighbours
  float* data;
  int64_t row, head;  // floats from one token, or head, to the next
};

struct Attention {
  int64_t queries, keys, heads, kv_heads, dim, threads;
  float scale;
  const int64_t *start, *end;  // [groups, queries], [queries]
  const int64_t* group;        // [kv_heads]: the row of start
  Matrix q, k, v, out;
  float* lse;                // [queries, heads]
  const float* extra_score;  // [queries, heads] or null
  Matrix extra_value;        // its data may be null: the extra entry then has the value 0
  Matrix grad_out, grad_q, grad_k, grad_v, grad_value;
  float* grad_score;
  float *delta, *lse2;  // scratch [heads, queries]
  float* parts;         // scratch [segments - 1, queries, heads, dim] of zeros
  int64_t segments;
};
}

namespace {

float* at(const Matrix& x, long token, long head) { return x.data + token * x.row + head * x.head; }

// The part of a tile that is visible: row i sees keys [low[i], high[i]) of the tile.
struct Edge {
  int low[ROWS], high[ROWS];
  bool whole;
  void set(const int64_t* start, const int64_t* end, int rows, long key, int keys) {
    whole = start[rows - 1] <= key && end[0] >= key + keys;
    for (int i = 0; i < ROWS; ++i) {
      low[i] = i < rows ? (int)least(most(start[i] - key, 0), keys) : 0;
      high[i] = i < rows ? (int)least(most(end[i] - key, 0), keys) : 0;
    }
  }
  // The first of the rows that sees one of keys [a, b) of the tile, and one past the last; both 0 where none does.
  void seers(int rows, int a, int b, int* first, int* last) const {
    int i = 0, j = rows;
    while (i < rows && high[i] <= a) ++i;
    while (j > i && low[j - 1] >= b) --j;
    *first = i < j ? i : 0;
    *last = i < j ? j : 0;
  }
};

void transpose(const float* x, long row, int rows, int dim, float factor, float* y, int y_row) {
  for (int d = 0; d < dim; ++d)
    for (int i = rows; i < y_row; ++i) y[d * y_row + i] = 0;
  for (int d0 = 0; d0 < dim; d0 += LANES)
    for (int i = 0; i < rows; ++i) {
      Vec v = load(x + i * row + d0) * factor;
      for (int d = 0; d < LANES; ++d) y[(d0 + d) * y_row + i] = v[d];
    }
}

struct alignas(64) Forward {
  float query[MAX_DIM * ROWS];  // transposed
  float score[KEYS * ROWS];     // transposed
  float out[ROWS * MAX_DIM];
  float maximum[ROWS], sum[ROWS], shrink[ROWS];
  Edge edge;
};

void score_tile(Forward& s, const Attention& x, const float* k, int rows, int keys) {
  int dim = (int)x.dim;
  constexpr int STEP = STRIP * LANES > ROWS ? ROWS : (STRIP > 2 ? 2 * LANES : STRIP * LANES);
  int width = s.edge.whole ? ROWS : STEP;
  for (int c = 0; c < rows; c += width) {
    int last = (int)least(c + width, rows) - 1;
    int from = s.edge.whole ? 0 : s.edge.low[c], to = s.edge.whole ? keys : s.edge.high[last];
    int cols = (int)least(divide_up(last + 1 - c, LANES) * LANES, ROWS - c);
    for (int j = from; j < to; j += GROUP)
      product<false>((int)least(GROUP, to - j), cols, dim, k + j * x.k.row, x.k.row, 1, s.query + c, ROWS,
                     s.score + j * ROWS + c, ROWS);
  }
}

// Scores become weights; maximum, sum and shrink are brought up to date. Returns whether any row shrinks.
bool softmax_tile(Forward& s, int rows, int keys) {
  const Vec hidden = splat(-INFINITY);
  bool shrinks = false;
  for (int c = 0; c < rows; c += LANES) {
    Int low{}, high{};
    int from = 0, to = keys;
    if (!s.edge.whole) {  // as far as products read that share a group with these rows
      std::memcpy(&low, s.edge.low + c, sizeof(low));
      std::memcpy(&high, s.edge.high + c, sizeof(high));
      from = s.edge.low[most(c - GROUP, 0)];
      to = s.edge.high[least(c + LANES + GROUP, rows) - 1];
    }
    Vec old = load(s.maximum + c), greatest = old;
    for (int j = from; j < to; ++j) {
      float* score = s.score + j * ROWS + c;
      Vec value = load(score);
      if (!s.edge.whole) {
        value = (splat(j) >= low) & (splat(j) < high) ? value : hidden;
        store(score, value);
      }
      greatest = value > greatest ? value : greatest;
    }
    Vec base = greatest == hidden ? Vec{} : greatest, sum = Vec{};
    for (int j = from; j < to; ++j) {
      float* score = s.score + j * ROWS + c;
      Vec weight = exp2_of(load(score) - base);
      store(score, weight);
      sum += weight;
    }
    Vec shrink = exp2_of(old - base);
    store(s.maximum + c, greatest);
    store(s.sum + c, load(s.sum + c) * shrink + sum);
    store(s.shrink + c, shrink);
    Int moved = greatest > old;
    for (int i = 0; i < LANES; ++i) shrinks |= moved[i] != 0;
  }
  return shrinks;
}

void forward_block(Forward& s, const Attention& x, long head, long first, int rows) {
  long kv_head = head / (x.heads / x.kv_heads);
  int dim = (int)x.dim;
  const int64_t *start = x.start + x.group[kv_head] * x.queries + first, *end = x.end + first;
  transpose(at(x.q, first, head), x.q.row, rows, dim, x.scale * LOG2E, s.query, ROWS);
  for (int i = 0; i < ROWS; ++i) {
    bool extra = x.extra_score && i < rows;
    s.maximum[i] = extra ? x.extra_score[(first + i) * x.heads + head] * LOG2E : -INFINITY;
    s.sum[i] = s.maximum[i] == -INFINITY ? 0.0f : 1.0f;
    if (extra && x.extra_value.data && s.sum[i] != 0)
      std::memcpy(s.out + i * dim, at(x.extra_value, first + i, head), dim * sizeof(float));
    else
      std::memset(s.out + i * dim, 0, dim * sizeof(float));
  }
  for (long key = start[0]; key < end[rows - 1]; key += KEYS) {
    int keys = (int)least(KEYS, end[rows - 1] - key);
    s.edge.set(start, end, rows, key, keys);
    score_tile(s, x, at(x.k, key, kv_head), rows, keys);
    bool shrinks = softmax_tile(s, rows, keys);
    if (shrinks)
      for (int i = 0; i < rows; ++i)
        for (int d = 0; d < dim; d += LANES) store(s.out + i * dim + d, load(s.out + i * dim + d) * s.shrink[i]);
    const float* v = at(x.v, key, kv_head);
    for (int i = 0; i < rows; i += GROUP) {
      int group = (int)least(GROUP, rows - i), from = s.edge.low[i], to = s.edge.high[i + group - 1];
      if (from < to)
        product<true>(group, dim, to - from, s.score + from * ROWS + i, 1, ROWS, v + from * x.v.row, x.v.row,
                      s.out + i * dim, dim);
    }
  }
  for (int i = 0; i < rows; ++i) {
    float factor = s.sum[i] == 0 ? 0.0f : 1.0f / s.sum[i];
    float* out = at(x.out, first + i, head);
    for (int d = 0; d < dim; d += LANES) store(out + d, load(s.out + i * dim + d) * factor);
    x.lse[(first + i) * x.heads + head] =
        s.sum[i] == 0 ? -INFINITY : (s.maximum[i] + std::log2(s.sum[i])) * LN2;
  }
}

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

void braid_attention_forward(const Attention* call) {
  const Attention& x = *call;
  long blocks = divide_up(x.queries, ROWS);
  parallel((int)x.threads, blocks * x.heads, [&](long task) {
    static thread_local Forward scratch;
    long block = blocks - 1 - task % blocks;  // late queries see most
    forward_block(scratch, x, task / blocks, block * ROWS, (int)least(ROWS, x.queries - block * ROWS));
  });
}

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
