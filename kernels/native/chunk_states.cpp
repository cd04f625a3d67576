// Gated scan of keys and values, the score of each query with its running key, and the states that end chunks, fused in
// fp32: the running keys are never stored, the backward pass makes those of one chunk and head again.
#include <vector>

#include "tiles.h"

namespace {
constexpr long TASK_TOKENS = 64;  // chunks are handed out in runs of at least so many tokens
}

extern "C" {

struct States {
  int64_t chunks, heads, groups, dim, threads;
  const int64_t* offsets;  // [chunks + 1]
  const int64_t* final;    // [chunks]: the place of its last states among the finals, or -1
  const float *gate, *value, *query, *key;  // [tokens, heads, dim] twice, [tokens, groups, dim] twice
  float *score, *state, *final_keys, *final_values;
  const float *grad_score, *grad_state, *grad_final_keys, *grad_final_values;
  float *grad_gate, *grad_value, *grad_query, *grad_key;
};
}

namespace {

// Calls work(chunk, first group, one past the last) so that every chunk and group is met once.
template <class Work>
void for_chunks(const States& s, const Work& work) {
  long runs = least(s.chunks, divide_up(s.offsets[s.chunks], TASK_TOKENS));
  long parts = runs >= 2 * s.threads ? 1 : s.groups;
  parallel((int)s.threads, runs * parts, [&](long task) {
    long run = task / parts, part = task % parts;
    for (long chunk = s.chunks * run / runs; chunk < s.chunks * (run + 1) / runs; ++chunk)
      work(chunk, s.groups * part / parts, s.groups * (part + 1) / parts);
  });
}

void forward_chunk(const States& s, long chunk, long group, long groups, float* running) {
  long heads = s.heads, dim = s.dim, first = s.offsets[chunk], last = s.offsets[chunk + 1], final = s.final[chunk];
  for (long t = first; t < last; ++t)
    for (long base = 0; base < heads; base += s.groups)
      for (long g = group; g < groups; ++g) {
        long head = base + g, wide = (t * heads + head) * dim, narrow = (t * s.groups + g) * dim;
        float* keys = running + head * dim;
        Vec dot = Vec{};
        for (long d = 0; d < dim; d += LANES) {
          Vec gate = load(s.gate + wide + d), key = load(s.key + narrow + d), value = load(s.value + wide + d);
          Vec k = t == first ? Vec{} : load(keys + d), v = t == first ? Vec{} : load(s.state + wide - heads * dim + d);
          k = key + gate * (k - key);
          store(keys + d, k);
          store(s.state + wide + d, value + gate * (v - value));
          dot += k * load(s.query + narrow + d);
        }
        s.score[t * heads + head] = total(dot);
        if (t == last - 1 && final >= 0) {
          std::memcpy(s.final_keys + (final * heads + head) * dim, keys, dim * sizeof(float));
          std::memcpy(s.final_values + (final * heads + head) * dim, s.state + wide, dim * sizeof(float));
        }
      }
}

// adjoint[t] = what reaches state t + g[t+1] adjoint[t+1], as in the scan; `running` holds the head's keys of the chunk.
void backward_head(const States& s, long chunk, long head, float* running, float* carry) {
  long heads = s.heads, dim = s.dim, g = head % s.groups, first = s.offsets[chunk], last = s.offsets[chunk + 1];
  long final = s.final[chunk];
  for (long t = first; t < last; ++t)
    for (long d = 0; d < dim; d += LANES) {
      Vec key = load(s.key + (t * s.groups + g) * dim + d), gate = load(s.gate + (t * heads + head) * dim + d);
      Vec k = t == first ? Vec{} : load(running + (t - 1 - first) * dim + d);
      store(running + (t - first) * dim + d, key + gate * (k - key));
    }
  float *carry_k = carry, *carry_v = carry + dim;
  for (long d = 0; d < dim; ++d) {
    carry_k[d] = final < 0 ? 0 : s.grad_final_keys[(final * heads + head) * dim + d];
    carry_v[d] = final < 0 ? 0 : s.grad_final_values[(final * heads + head) * dim + d];
  }
  for (long t = last - 1; t >= first; --t) {
    float grad_score = s.grad_score[t * heads + head];
    long wide = (t * heads + head) * dim, narrow = (t * s.groups + g) * dim;
    bool add = head >= s.groups;  // the first head of a group begins its sums
    for (long d = 0; d < dim; d += LANES) {
      Vec gate = load(s.gate + wide + d), key = load(s.key + narrow + d), value = load(s.value + wide + d);
      Vec k = t == first ? Vec{} : load(running + (t - 1 - first) * dim + d);
      Vec v = t == first ? Vec{} : load(s.state + wide - heads * dim + d);
      Vec adjoint_k = load(carry_k + d) + grad_score * load(s.query + narrow + d);
      Vec adjoint_v = load(carry_v + d) + load(s.grad_state + wide + d);
      Vec next_k = gate * adjoint_k, next_v = gate * adjoint_v;
      store(carry_k + d, next_k);
      store(carry_v + d, next_v);
      store(s.grad_gate + wide + d, adjoint_k * (k - key) + adjoint_v * (v - value));
      store(s.grad_value + wide + d, adjoint_v - next_v);
      Vec grad_key = adjoint_k - next_k, grad_query = grad_score * load(running + (t - first) * dim + d);
      store(s.grad_key + narrow + d, add ? load(s.grad_key + narrow + d) + grad_key : grad_key);
      store(s.grad_query + narrow + d, add ? load(s.grad_query + narrow + d) + grad_query : grad_query);
    }
  }
}

}  // namespace

extern "C" {

void braid_chunk_states_forward(const States* call) {
  const States& s = *call;
  for_chunks(s, [&](long chunk, long group, long groups) {
    static thread_local std::vector<float> running;
    if ((long)running.size() < s.heads * s.dim) running.resize(s.heads * s.dim);
    forward_chunk(s, chunk, group, groups, running.data());
  });
}

void braid_chunk_states_backward(const States* call) {
  const States& s = *call;
  for_chunks(s, [&](long chunk, long group, long groups) {
    static thread_local std::vector<float> running;
    size_t size = (s.offsets[chunk + 1] - s.offsets[chunk] + 2) * s.dim;
    if (running.size() < size) running.resize(size);
    for (long base = 0; base < s.heads; base += s.groups)
      for (long g = group; g < groups; ++g)
        backward_head(s, chunk, base + g, running.data() + 2 * s.dim, running.data());
  });
}
}
