// Interval attention in fp32: what its two directions share.
//
// Query n of head h sees keys [start[group of h][n], end[n]); neither bound decreases with n. Scores are kept in
// units of log 2. Along the edges of intervals products are cut to what is visible, in groups of rows and vectors.
#pragma once

#include <cmath>

#include "tiles.h"

constexpr int ROWS = 64, KEYS = 128;  // queries and keys of a tile
constexpr int MAX_DIM = 256;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

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

static inline float* at(const Matrix& x, long token, long head) { return x.data + token * x.row + head * x.head; }

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

static void transpose(const float* x, long row, int rows, int dim, float factor, float* y, int y_row) {
  for (int d = 0; d < dim; ++d)
    for (int i = rows; i < y_row; ++i) y[d * y_row + i] = 0;
  for (int d0 = 0; d0 < dim; d0 += LANES)
    for (int i = 0; i < rows; ++i) {
      Vec v = load(x + i * row + d0) * factor;
      for (int d = 0; d < LANES; ++d) y[(d0 + d) * y_row + i] = v[d];
    }
}
