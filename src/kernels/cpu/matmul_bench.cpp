// Products with quantised and plain weights beside the machine's limits, interleaved A B A B so that both see the same
// disturbances. Each call takes the next of several matrices, together larger than the caches.
//   matmul_bench [--n N] [--k K] [--m M] [--group G] [--threads T] [--rounds R] [--kind NAME]
// Per kind of weight and number of rows of x: GB/s of weight bytes (values, scales, minimums), the share of a plain
// streaming read of the same bytes by the same threads, and the share of the best fused multiply-adds per second that
// the same threads reach in registers, each from the best rounds (machines are not quiet) and, in brackets, from the
// medians. The bound is whichever limit is lower.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/quantize.h"
#include "kernels/cpu/spans.h"

#if defined(__x86_64__)
#define DS_BENCH_CLONES __attribute__((target_clones("avx512f", "avx2,fma", "default")))
#else
#define DS_BENCH_CLONES
#endif

namespace {

using namespace deepscale;
using namespace deepscale::kernels;

constexpr int64_t kTotalBytes = int64_t{160} << 20;

struct Options {
  int64_t n = 4096, k = 11008, m = 0, group = 64;
  int threads = 1, rounds = 40;
  std::string kind;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) {
  Memory memory(std::aligned_alloc(4096, static_cast<size_t>((bytes + 4095) / 4096 * 4096)));
  std::memset(memory.get(), 0, static_cast<size_t>((bytes + 4095) / 4096 * 4096));
  return memory;
}

/// Threads that wait by spinning, so that a call of a millisecond is not measured with the system's wake-ups.
class Team {
 public:
  explicit Team(int size) {
    for (int t = 1; t < size; ++t) threads_.emplace_back([this, t] { loop(t); });
  }
  ~Team() {
    work_ = nullptr;
    start_.fetch_add(1);
    for (auto& thread : threads_) thread.join();
  }
  double seconds_of(const std::function<void(int)>& work) {
    work_ = &work;
    done_.store(0);
    const auto begin = std::chrono::steady_clock::now();
    start_.fetch_add(1);
    work(0);
    while (done_.load() < static_cast<int>(threads_.size())) {
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  void loop(int t) {
    for (int seen = 0;;) {
      while (start_.load() == seen) {
      }
      ++seen;
      if (work_ == nullptr) return;
      (*work_)(t);
      done_.fetch_add(1);
    }
  }

  std::vector<std::thread> threads_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<int> start_{0}, done_{0};
};

DS_BENCH_CLONES uint64_t read_all(const uint64_t* data, int64_t words) {
  uint64_t x = 0;
  for (int64_t i = 0; i < words; ++i) x ^= data[i];
  return x;
}

/// 128 independent chains of fused multiply-adds; returns their number of operations.
DS_BENCH_CLONES int64_t multiply_in_registers(float* sums, int64_t steps) {
  typedef float Chains __attribute__((vector_size(64)));
  Chains chain[10] = {}, factor = {}, addend = {};
  for (int j = 0; j < 10; ++j) chain[j] += sums[j];
  factor += 0.5f;
  addend += 1.0f;
  for (int64_t i = 0; i < steps; ++i) {
    for (Chains& c : chain) c = c * factor + addend;
  }
  for (int j = 0; j < 10; ++j) sums[j] = chain[j][0];
  return steps * 10 * 16;
}

double best(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

RowRange share(int64_t rows, int part, int parts) {
  return {rows * part / parts, rows * (part + 1) / parts};
}

/// Matrices of one kind, and the product with the next of them.
struct Subject {
  std::string name;
  DType dtype = DType::kFloat32;
  int bits = 0;  ///< 0: plain

  std::vector<Memory> memory;
  std::vector<QuantizedMatrix> matrices;
  std::vector<const void*> plain;
  int64_t bytes = 0;  ///< of one matrix with its parameters

  void build(const Options& o) {
    Memory source = allocate(o.n * o.k * size_of(dtype));
    std::vector<float> row(static_cast<size_t>(o.k));
    for (int64_t r = 0; r < o.n; ++r) {
      for (size_t c = 0; c < row.size(); ++c) {
        row[c] = static_cast<float>((static_cast<int64_t>(c) * 7919 + r * 104729) % 2003 - 1001) * 2e-5f;
      }
      convert(row.data(), DType::kFloat32, static_cast<char*>(source.get()) + r * o.k * size_of(dtype), dtype, o.k);
    }
    const GroupFormat format{bits, o.group, false, dtype};
    const int64_t params = o.n * groups_per_row(o.k, format) * size_of(dtype);
    bytes = bits == 0 ? o.n * o.k * size_of(dtype) : o.n * row_bytes(o.k, format) + 2 * params;
    for (int64_t i = 0; i < (kTotalBytes + bytes - 1) / bytes; ++i) {
      if (bits == 0) {
        memory.push_back(allocate(bytes));
        std::memcpy(memory.back().get(), source.get(), static_cast<size_t>(bytes));
        plain.push_back(memory.back().get());
        continue;
      }
      QuantizedMatrix matrix{o.n, o.k, format, nullptr, nullptr, nullptr};
      memory.push_back(allocate(bytes));
      matrix.values = memory.back().get();
      matrix.scales = static_cast<char*>(matrix.values) + o.n * row_bytes(o.k, format);
      matrix.minimums = static_cast<char*>(matrix.scales) + params;
      quantize_groups(source.get(), dtype, matrix, {0, o.n});
      matrices.push_back(matrix);
    }
  }
  void multiply(size_t index, const Options& o, const MatmulArgs& args, RowRange rows) const {
    if (bits == 0) {
      matmul_transposed(plain[index % plain.size()], dtype, o.n, o.k, args, rows);
    } else {
      quantized_matmul(matrices[index % matrices.size()], args, rows);
    }
  }
};

void compare(const Subject& subject, int64_t m, const Options& o, Team& team) {
  const DType x_dtype = subject.dtype;
  const Memory x = allocate(m * o.k * size_of(x_dtype)), y = allocate(m * o.n * 4);
  std::vector<float> values(static_cast<size_t>(m * o.k));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 193) * 0.01f - 1.0f;
  convert(values.data(), DType::kFloat32, x.get(), x_dtype, m * o.k);
  MatmulArgs args;
  args.x = x.get();
  args.x_dtype = x_dtype;
  args.x_stride = o.k;
  args.m = m;
  args.y = y.get();
  args.y_dtype = x_dtype;
  args.y_stride = o.n;
  std::vector<double> ours, reading, computing;
  std::vector<uint64_t> sinks(static_cast<size_t>(o.threads) * 8);
  std::vector<float> sums(static_cast<size_t>(o.threads) * 16, 1.0f);
  size_t next = 0;
  const int rounds = static_cast<int>(std::max<int64_t>(3, o.rounds / std::max<int64_t>(1, m / 8)));
  for (int round = -1; round < rounds; ++round) {
    const size_t index = next++;
    const double a = team.seconds_of([&](int t) { subject.multiply(index, o, args, share(o.n, t, o.threads)); });
    const void* const other = subject.memory[next++ % subject.memory.size()].get();
    const double b = team.seconds_of([&](int t) {
      const RowRange words = share(subject.bytes / 8, t, o.threads);
      sinks[static_cast<size_t>(t) * 8] =
          read_all(static_cast<const uint64_t*>(other) + words.begin, words.end - words.begin);
    });
    constexpr int64_t kSteps = 20000;
    const double c = team.seconds_of([&](int t) { multiply_in_registers(&sums[static_cast<size_t>(t) * 16], kSteps); });
    if (round < 0) continue;
    ours.push_back(a);
    reading.push_back(b);
    computing.push_back(c / static_cast<double>(kSteps * 160 * o.threads) * static_cast<double>(m * o.n * o.k));
  }
  const double gb = static_cast<double>(subject.bytes) / 1e9;
  const double memory_share = best(reading) / best(ours), compute_share = best(computing) / best(ours);
  std::printf(
      "%-10s m %3lld %8.3f ms %7.2f GB/s  of reading %.2f [%.2f]  of multiplying %.2f [%.2f]  of the bound %.2f\n",
      subject.name.c_str(), static_cast<long long>(m), best(ours) * 1e3, gb / best(ours), memory_share,
      median(reading) / median(ours), compute_share, median(computing) / median(ours),
      std::max(memory_share, compute_share));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--n") o.n = std::stoll(value);
    if (key == "--k") o.k = std::stoll(value);
    if (key == "--m") o.m = std::stoll(value);
    if (key == "--group") o.group = std::stoll(value);
    if (key == "--threads") o.threads = std::stoi(value);
    if (key == "--rounds") o.rounds = std::stoi(value);
    if (key == "--kind") o.kind = value;
  }
  std::printf("target %s, W [%lld, %lld], groups of %lld, %d thread(s), %d rounds\n", cpu_target_name(),
              static_cast<long long>(o.n), static_cast<long long>(o.k), static_cast<long long>(o.group), o.threads,
              o.rounds);
  Team team(o.threads);
  const std::pair<const char*, DType> kinds[] = {{"int4", DType::kBFloat16},
                                                 {"int8", DType::kBFloat16},
                                                 {"bf16", DType::kBFloat16},
                                                 {"fp16", DType::kFloat16},
                                                 {"fp32", DType::kFloat32}};
  for (const auto& [name, dtype] : kinds) {
    Subject subject;
    subject.name = name;
    subject.dtype = dtype;
    subject.bits = subject.name == "int4" ? 4 : subject.name == "int8" ? 8 : 0;
    if (!o.kind.empty() && o.kind != subject.name) continue;
    subject.build(o);
    for (const int64_t m : {1, 2, 4, 8, 16, 64}) {
      if (o.m == 0 || o.m == m) compare(subject, m, o, team);
    }
  }
  return 0;
}
