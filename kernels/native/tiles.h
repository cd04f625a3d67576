// Vectors, small matrix products and threads: what both kernels are made of.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16, STRIP = 4;  // floats in a vector, vectors in a strip of columns
#else
constexpr int LANES = 8, STRIP = 2;
#endif
constexpr int GROUP = 6;  // rows of a product that are computed together: GROUP x STRIP sums stay in registers

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef float LooseVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline Vec load(const float* x) { return *reinterpret_cast<const LooseVec*>(x); }
static inline void store(float* x, Vec v) { *reinterpret_cast<LooseVec*>(x) = v; }
static inline Vec splat(float x) { return x - Vec{}; }
static inline Int splat(int32_t x) { return x - Int{}; }
static inline float total(Vec v) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += v[i];
  return sum;
}

// 2^x for x <= 128, 0 below -126, relative error 2e-7 (polynomial of Cephes' exp2f). A nan stays one.
static inline Vec exp2_of(Vec x) {
  const Vec magic = splat(12582912.0f), least = splat(-127.0f);  // 1.5 x 2^23: adding it rounds to whole numbers
  Vec bounded = x < least ? least : x;
  Vec shifted = bounded + magic;
  Vec f = bounded - (shifted - magic);
  Vec p = splat(1.535336188319500e-4f);
  p = p * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.0f;
  Vec power = (Vec)((Int)p + (((Int)shifted - (Int)magic) << 23));
  return x < splat(-126.0f) ? Vec{} : power;
}

// c[m][n] (+)= sum over k < depth of a[m * a_row + k * a_step] * b[k * b_row + n], for ROWS rows and VECS vectors.
template <int ROWS, int VECS, bool ADD>
static inline void product_block(long depth, const float* a, long a_row, long a_step, const float* b, long b_row,
                                 float* c, long c_row) {
  Vec sum[ROWS][VECS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < VECS; ++n) sum[m][n] = ADD ? load(c + m * c_row + n * LANES) : Vec{};
  for (long k = 0; k < depth; ++k) {
    Vec right[VECS];
#pragma GCC unroll 8
    for (int n = 0; n < VECS; ++n) right[n] = load(b + k * b_row + n * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      Vec left = splat(a[m * a_row + k * a_step]);
#pragma GCC unroll 8
      for (int n = 0; n < VECS; ++n) sum[m][n] += left * right[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < VECS; ++n) store(c + m * c_row + n * LANES, sum[m][n]);
}

template <int ROWS, bool ADD>
static inline void product_rows(long cols, long depth, const float* a, long a_row, long a_step, const float* b,
                                long b_row, float* c, long c_row) {
  long n = 0;
  for (; n + STRIP * LANES <= cols; n += STRIP * LANES)
    product_block<ROWS, STRIP, ADD>(depth, a, a_row, a_step, b + n, b_row, c + n, c_row);
  for (; n < cols; n += LANES) product_block<ROWS, 1, ADD>(depth, a, a_row, a_step, b + n, b_row, c + n, c_row);
}

// One group of at most GROUP rows; cols is a multiple of LANES.
template <bool ADD>
static void product(int rows, long cols, long depth, const float* a, long a_row, long a_step, const float* b,
                    long b_row, float* c, long c_row) {
  switch (rows) {
    case 1: return product_rows<1, ADD>(cols, depth, a, a_row, a_step, b, b_row, c, c_row);
    case 2: return product_rows<2, ADD>(cols, depth, a, a_row, a_step, b, b_row, c, c_row);
    case 3: return product_rows<3, ADD>(cols, depth, a, a_row, a_step, b, b_row, c, c_row);
    case 4: return product_rows<4, ADD>(cols, depth, a, a_row, a_step, b, b_row, c, c_row);
    case 5: return product_rows<5, ADD>(cols, depth, a, a_row, a_step, b, b_row, c, c_row);
    default: return product_rows<GROUP, ADD>(cols, depth, a, a_row, a_step, b, b_row, c, c_row);
  }
}

// Calls work(i) for i < tasks; whichever thread is free takes the next one.
template <class Work>
static void parallel(int threads, long tasks, const Work& work) {
  if (threads <= 1 || tasks <= 1) {
    for (long i = 0; i < tasks; ++i) work(i);
    return;
  }
  std::atomic<long> next{0};
#pragma omp parallel num_threads(threads)
  for (long i; (i = next++) < tasks;) work(i);
}

static inline long divide_up(long a, long b) { return (a + b - 1) / b; }
static inline long least(long a, long b) { return a < b ? a : b; }
static inline long most(long a, long b) { return a > b ? a : b; }
