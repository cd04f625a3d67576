// The gated scan of several inputs with one gate, in fp32: s[t] = g[t] s[t-1] + (1 - g[t]) x[t] from 0 in each chunk.
#include "tiles.h"

namespace {

constexpr long TASK_TOKENS = 64;  // chunks are handed out in runs of at least so many tokens
constexpr int MOST = 4;           // inputs

}  // namespace

extern "C" {

struct Rows {  // [tokens, channels]; channels repeat after `period`, a multiple of the vector's length
  float* data;
  int64_t row, period;
};

struct Scan {
  int64_t chunks, channels, inputs, threads;
  const int64_t* offsets;  // [chunks + 1]
  Rows gate, x[MOST], state[MOST], grad[MOST], grad_x[MOST], grad_gate;
};
}

namespace {

// Calls work(first token, one past the last token, first channel, one past the last) for every chunk.
template <class Work>
void for_chunks(const Scan& s, const Work& work) {
  long tokens = s.offsets[s.chunks], runs = least(s.chunks, divide_up(tokens, TASK_TOKENS));
  // Few long chunks leave threads idle, so their channels are divided, too.
  long parts = runs >= 2 * s.threads ? 1 : least(divide_up(2 * s.threads, runs), s.channels / LANES);
  parallel((int)s.threads, runs * parts, [&](long task) {
    long run = task / parts, part = task % parts, vectors = s.channels / LANES;
    long from = vectors * part / parts * LANES, to = vectors * (part + 1) / parts * LANES;
    for (long chunk = s.chunks * run / runs; chunk < s.chunks * (run + 1) / runs; ++chunk)
      work(s.offsets[chunk], s.offsets[chunk + 1], from, to);
  });
}

const float* row(const Rows& x, long token) { return x.data + token * x.row; }
float* row_of(const Rows& x, long token) { return x.data + token * x.row; }

}  // namespace

extern "C" {

void braid_scan_forward(const Scan* call) {
  const Scan& s = *call;
  for_chunks(s, [&](long first, long last, long from, long to) {
    for (int i = 0; i < s.inputs; ++i)
      for (long t = first; t < last; ++t) {
        const float *gate = row(s.gate, t), *x = row(s.x[i], t), *before = row(s.state[i], most(t - 1, first));
        float* state = row_of(s.state[i], t);
        for (long c = from, r = from % s.x[i].period; c < to; c += LANES) {
          Vec g = load(gate + c), value = load(x + r);
          store(state + c, t == first ? value - g * value : value + g * (load(before + c) - value));
          r = r + LANES == s.x[i].period ? 0 : r + LANES;
        }
      }
  });
}

// adjoint[t] = grad[t] + g[t+1] adjoint[t+1]; grad x = (1 - g) adjoint; grad gate = sum of adjoint (s[t-1] - x).
void braid_scan_backward(const Scan* call) {
  const Scan& s = *call;
  for_chunks(s, [&](long first, long last, long from, long to) {
    constexpr long WIDTH = 16;  // vectors of channels whose carries stay at hand
    for (long begin = from; begin < to; begin += WIDTH * LANES) {
      long end = least(begin + WIDTH * LANES, to);
      for (int i = 0; i < s.inputs; ++i) {
        Vec carry[WIDTH] = {};
        for (long t = last - 1; t >= first; --t) {
          const float *gate = row(s.gate, t), *x = row(s.x[i], t), *grad = row(s.grad[i], t);
          const float* before = row(s.state[i], most(t - 1, first));
          float *grad_x = row_of(s.grad_x[i], t), *grad_gate = row_of(s.grad_gate, t);
          for (long c = begin, r = begin % s.x[i].period, n = 0; c < end; c += LANES, ++n) {
            Vec g = load(gate + c), value = load(x + r), adjoint = load(grad + c) + carry[n];
            carry[n] = g * adjoint;
            store(grad_x + c, adjoint - carry[n]);
            Vec change = adjoint * ((t == first ? Vec{} : load(before + c)) - value);
            store(grad_gate + c, i ? load(grad_gate + c) + change : change);
            r = r + LANES == s.x[i].period ? 0 : r + LANES;
          }
        }
      }
    }
  });
}
}
