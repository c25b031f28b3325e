// Bandwidth of the CPU kernels beside the machine's limit for the same bytes, interleaved A B A B so that both see the
// same disturbances. Prints the medians of the rounds, and the ratio of the best rounds for machines that are not
// quiet.
//   kernels_bench [--numel N] [--threads T] [--rounds R]
// adam: fused step (unscale, AdamW, bf16 copy-out) with fp32 or bf16 gradients against an in-place pass that loads and
//       stores the same streams without arithmetic.
// reduce: two inputs into one (in place) and into both (push) against memcpy of one buffer.
// copy: copy_bytes against memcpy.  norm: sum_of_squares against a pass that only reads.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/optimizers.h"
#include "kernels/cpu/spans.h"

#if defined(__x86_64__)
#define DS_BENCH_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DS_BENCH_CLONES
#endif

namespace {

using namespace deepscale;
using namespace deepscale::kernels;

using Word = uint64_t;

constexpr DType kF32 = DType::kFloat32, kBF16 = DType::kBFloat16;

/// Memory of one rank: parameters, moments, gradient, copy; 64-byte aligned.
struct Rank {
  explicit Rank(int64_t count) : numel(count) {
    for (float*& stream : streams) {
      stream = static_cast<float*>(std::aligned_alloc(4096, static_cast<size_t>((count * 4 + 4095) / 4096 * 4096)));
    }
    for (int k = 0; k < 5; ++k) fill(k, DType::kFloat32);
  }
  ~Rank() {
    for (float* stream : streams) std::free(stream);
  }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  /// Ordinary numbers in the dtype about to be measured: arithmetic on random bits would time subnormals.
  void fill(int stream, DType dtype) {
    for (int64_t i = 0; i < numel; ++i) {
      const float value = 1e-3f * static_cast<float>(1 + i % 97);
      if (dtype == DType::kFloat32) {
        streams[stream][i] = value;
      } else {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        reinterpret_cast<uint16_t*>(streams[stream])[i] = static_cast<uint16_t>(bits >> 16);
      }
    }
  }

  int64_t numel;
  float* streams[5];  // param, first moment, second moment, gradient, copy
};

/// Loads and stores every byte of the fused step once: three streams in place, one read, one written.
DS_BENCH_CLONES void pass_without_arithmetic(Word* __restrict p, Word* __restrict m, Word* __restrict v,
                                             const Word* __restrict g, Word* __restrict copy, int64_t bytes,
                                             int64_t grad_bytes) {
  constexpr int64_t kBlock = 256;  // bytes of an fp32 stream; the others in proportion
  for (int64_t b = 0; b + kBlock <= bytes; b += kBlock) {
    const int64_t w = b / 8;
    const Word* grad = g + w * grad_bytes / 4;
    Word* half = copy + w / 2;
    for (int64_t i = 0; i < kBlock / 8; ++i) {
      p[w + i] ^= 1;
      m[w + i] ^= 1;
      v[w + i] ^= 1;
    }
    if (grad_bytes == 4) {
      for (int64_t i = 0; i < kBlock / 16; ++i) half[i] = grad[i] ^ grad[i + kBlock / 16];
    } else {
      for (int64_t i = 0; i < kBlock / 16; ++i) half[i] = grad[i];
    }
  }
}

DS_BENCH_CLONES uint64_t pass_reading(const Word* data, int64_t words) {
  uint64_t x = 0;
  for (int64_t i = 0; i < words; ++i) x ^= data[i];
  return x;
}

double seconds_of(const std::function<void(Rank&)>& work, std::vector<std::unique_ptr<Rank>>& ranks) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (size_t r = 1; r < ranks.size(); ++r) threads.emplace_back([&, r] { work(*ranks[r]); });
  work(*ranks[0]);
  for (auto& thread : threads) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double best(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Comparison {
  const char* name;
  double bytes_per_element;
  DType dtypes[5];  ///< what the streams hold
  std::function<void(Rank&)> ours;
  std::function<void(Rank&)> limit;
};

void compare(const Comparison& c, std::vector<std::unique_ptr<Rank>>& ranks, int rounds) {
  const double bytes = c.bytes_per_element * static_cast<double>(ranks[0]->numel) * static_cast<double>(ranks.size());
  std::vector<double> ours, limit, ratio;
  for (auto& rank : ranks) {
    for (int k = 0; k < 5; ++k) rank->fill(k, c.dtypes[k]);
  }
  for (int round = -1; round < rounds; ++round) {
    const double a = seconds_of(c.ours, ranks);
    const double b = seconds_of(c.limit, ranks);
    if (round < 0) continue;  // warm-up
    ours.push_back(a);
    limit.push_back(b);
    ratio.push_back(b / a);
  }
  std::printf("%-36s %7.2f GB/s  limit %7.2f GB/s  ratio %.3f (of the best %.3f)  %.4f ms\n", c.name,
              bytes / median(ours) / 1e9, bytes / median(limit) / 1e9, median(ratio), best(limit) / best(ours),
              best(ours) * 1e3);
}

Comparison adam(DType grad_dtype) {
  const int64_t grad_bytes = size_of(grad_dtype);
  AdamArgs args;
  args.weight_decay = 0.01;
  args.bias_correction1 = 0.5;
  args.bias_correction2 = 0.1;
  return {grad_bytes == 4 ? "adam, fp32 gradient, bf16 copy-out" : "adam, bf16 gradient, bf16 copy-out",
          24.0 + static_cast<double>(grad_bytes) + 2.0,
          {kF32, kF32, kF32, grad_dtype, kBF16},
          [=](Rank& r) {
            OptimizerSpan span;
            span.numel = r.numel;
            span.param = r.streams[0];
            span.state1 = r.streams[1];
            span.state2 = r.streams[2];
            span.grad = r.streams[3];
            span.grad_dtype = grad_dtype;
            span.copy_out = r.streams[4];
            span.grad_scale = 0.125f;
            adam_step(args, span);
          },
          [=](Rank& r) {
            auto words = [&](int k) { return reinterpret_cast<Word*>(r.streams[k]); };
            pass_without_arithmetic(words(0), words(1), words(2), words(3), words(4), r.numel * 4, grad_bytes);
          }};
}

Comparison reduce(DType dtype, bool push) {
  const int64_t width = size_of(dtype);
  const char* names[2][2] = {{"reduce bf16, 2 inputs, in place", "reduce bf16, 2 inputs, push"},
                             {"reduce fp32, 2 inputs, in place", "reduce fp32, 2 inputs, push"}};
  return {names[width == 4][push],
          static_cast<double>(width) * (push ? 4 : 3),
          {dtype, dtype, kF32, kF32, kF32},
          [=](Rank& r) {
            const void* const in[] = {r.streams[0], r.streams[1]};
            void* const out[] = {r.streams[0], r.streams[1]};
            reduce_buffers(in, {out, push ? 2u : 1u}, r.numel, dtype, ReduceOp::kAvg);
          },
          [=](Rank& r) { std::memcpy(r.streams[0], r.streams[1], static_cast<size_t>(r.numel * width)); }};
}

}  // namespace

int main(int argc, char** argv) {
  int64_t numel = 8 << 20;
  int threads = 1, rounds = 15;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i];
    if (key == "--numel") numel = std::atoll(argv[i + 1]);
    if (key == "--threads") threads = std::atoi(argv[i + 1]);
    if (key == "--rounds") rounds = std::atoi(argv[i + 1]);
  }
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int t = 0; t < threads; ++t) ranks.push_back(std::make_unique<Rank>(numel));
  std::printf("target %s, %lld elements, %d thread(s), %d rounds\n", cpu_target_name(), static_cast<long long>(numel),
              threads, rounds);
  compare(adam(kF32), ranks, rounds);
  compare(adam(kBF16), ranks, rounds);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    compare(reduce(dtype, false), ranks, rounds);
    compare(reduce(dtype, true), ranks, rounds);
  }
  compare({"copy_bytes",
           8,
           {kF32, kF32, kF32, kF32, kF32},
           [](Rank& r) { copy_bytes(r.streams[0], r.streams[1], r.numel * 4); },
           [](Rank& r) { std::memcpy(r.streams[1], r.streams[0], static_cast<size_t>(r.numel * 4)); }},
          ranks, rounds);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    compare({dtype == DType::kFloat32 ? "sum of squares, fp32" : "sum of squares, bf16",
             static_cast<double>(size_of(dtype)),
             {dtype, kF32, kF32, kF32, kF32},
             [=](Rank& r) {
               std::vector<double> partials(static_cast<size_t>(r.numel / kNormBlock + 1));
               sum_of_squares(r.streams[0], dtype, r.numel, partials.data());
             },
             [=](Rank& r) {
               volatile uint64_t sink =
                   pass_reading(reinterpret_cast<const Word*>(r.streams[0]), r.numel * size_of(dtype) / 8);
               (void)sink;
             }},
            ranks, rounds);
  }
  compare({"convert fp32 to bf16",
           6,
           {kF32, kBF16, kF32, kF32, kF32},
           [](Rank& r) { convert(r.streams[0], DType::kFloat32, r.streams[1], DType::kBFloat16, r.numel, 0.5f); },
           [](Rank& r) { std::memcpy(r.streams[1], r.streams[0], static_cast<size_t>(r.numel * 3)); }},
          ranks, rounds);
  return 0;
}
