// Interval attention forward: online softmax (FlashAttention, arXiv 2205.14135).
#include "attention.h"

namespace {

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
}
