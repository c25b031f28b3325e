// Products with quantised and plain weights beside the machine's limits, interleaved A B A B so that both see the same
// disturbances. Each call takes the next of several matrices, together larger than the caches.
//   matmul_bench [--n N] [--k K] [--m M] [--group G] [--threads T] [--rounds R] [--kind NAME]
// Per kind of weight, number of threads and number of rows of x: GB/s of weight bytes (values, scales, minimums), the
// share of a plain streaming read of as many bytes by the same threads, and the share of the best fused multiply-adds
// per second that the same threads reach in registers, each from the best rounds (machines are not quiet) and, in
// brackets, from the medians. The bound is whichever limit is lower. The last line is RESULT and the same as JSON, with
// how many times faster than bf16 the other kinds are. Without --threads: one thread, then two. Kinds: bf16, int8, int4
// (without --kind, these three), fp16, fp32, all.
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
#define DS_BENCH_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define DS_BENCH_CLONES
#endif

namespace {

using namespace deepscale;
using namespace deepscale::kernels;

constexpr int64_t kTotalBytes = int64_t{160} << 20;

struct Options {
  int64_t n = 4096, k = 11008, m = 0, group = 64;
  int threads = 0, rounds = 40;
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
    for (int64_t spins = 0; done_.load() < static_cast<int>(threads_.size()); ++spins) give_way(spins);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  static void give_way(int64_t spins) {
    if (spins > 2000) std::this_thread::yield();  // on a busy machine the other thread may wait for this processor
  }
  void loop(int t) {
    for (int seen = 0;;) {
      for (int64_t spins = 0; start_.load() == seen; ++spins) give_way(spins);
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

struct Timing {
  std::string kind;
  int threads = 0;
  int64_t m = 0;
  double seconds = 0, gb_s = 0, of_reading = 0, of_reading_median = 0, of_multiplying = 0;
};

/// One kind of weight with m rows of x: the product, and the two limits.
class Comparison {
 public:
  Comparison(const Subject& subject, int64_t m, const Options& o)
      : subject_(subject),
        options_(o),
        m_(m),
        x_(allocate(m * o.k * size_of(subject.dtype))),
        y_(allocate(m * o.n * 4)),
        sinks_(static_cast<size_t>(o.threads) * 8),
        sums_(static_cast<size_t>(o.threads) * 16, 1.0f) {
    std::vector<float> values(static_cast<size_t>(m * o.k));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 193) * 0.01f - 1.0f;
    convert(values.data(), DType::kFloat32, x_.get(), subject.dtype, m * o.k);
    args_ = {x_.get(), subject.dtype, o.k, m, y_.get(), subject.dtype, o.n, nullptr, DType::kFloat32};
  }

  void round(Team& team, bool counts) {
    const Options& o = options_;
    const size_t index = next_++;
    const double ours = team.seconds_of([&](int t) { subject_.multiply(index, o, args_, share(o.n, t, o.threads)); });
    const void* const other = subject_.memory[next_++ % subject_.memory.size()].get();
    const double reading = team.seconds_of([&](int t) {
      const RowRange words = share(subject_.bytes / 8, t, o.threads);
      sinks_[static_cast<size_t>(t) * 8] =
          read_all(static_cast<const uint64_t*>(other) + words.begin, words.end - words.begin);
    });
    constexpr int64_t kSteps = 20000;
    const double computing =
        team.seconds_of([&](int t) { multiply_in_registers(&sums_[static_cast<size_t>(t) * 16], kSteps); });
    if (!counts) return;
    ours_.push_back(ours);
    reading_.push_back(reading);
    computing_.push_back(computing / static_cast<double>(kSteps * 160 * o.threads) *
                         static_cast<double>(m_ * o.n * o.k));
  }

  Timing timing() const {
    const double seconds = best(ours_);
    return {subject_.name,
            options_.threads,
            m_,
            seconds,
            static_cast<double>(subject_.bytes) / 1e9 / seconds,
            best(reading_) / seconds,
            median(reading_) / median(ours_),
            best(computing_) / seconds};
  }

 private:
  const Subject& subject_;
  const Options& options_;
  int64_t m_;
  Memory x_, y_;
  std::vector<uint64_t> sinks_;
  std::vector<float> sums_;
  MatmulArgs args_;
  size_t next_ = 0;
  std::vector<double> ours_, reading_, computing_;
};

/// All kinds of weight with m rows of x, by turns.
void compare(const std::vector<Subject>& subjects, int64_t m, const Options& o, Team& team,
             std::vector<Timing>& timings) {
  std::vector<std::unique_ptr<Comparison>> comparisons;
  for (const Subject& subject : subjects) comparisons.push_back(std::make_unique<Comparison>(subject, m, o));
  const int rounds = static_cast<int>(std::max<int64_t>(5, o.rounds / std::max<int64_t>(1, m / 8)));
  for (int round = -1; round < rounds; ++round) {
    for (const auto& comparison : comparisons) comparison->round(team, round >= 0);
  }
  for (const auto& comparison : comparisons) {
    const Timing t = comparison->timing();
    std::printf(
        "%-5s threads %d m %3lld %8.3f ms %7.2f GB/s  of reading %.2f [%.2f]  of multiplying %.2f  of the bound %.2f\n",
        t.kind.c_str(), o.threads, static_cast<long long>(m), t.seconds * 1e3, t.gb_s, t.of_reading,
        t.of_reading_median, t.of_multiplying, std::max(t.of_reading, t.of_multiplying));
    std::fflush(stdout);
    timings.push_back(t);
  }
}

/// The timings as one line of JSON.
void print_result(const Options& o, const std::vector<Timing>& timings) {
  std::printf("RESULT {\"target\": \"%s\", \"n\": %lld, \"k\": %lld, \"group\": %lld, \"products\": [",
              cpu_target_name(), static_cast<long long>(o.n), static_cast<long long>(o.k),
              static_cast<long long>(o.group));
  const char* separator = "";
  for (const Timing& t : timings) {
    std::printf(
        "%s{\"kind\": \"%s\", \"threads\": %d, \"m\": %lld, \"ms\": %.4f, \"gb_s\": %.2f, \"of_reading\": %.3f, "
        "\"of_reading_median\": %.3f, \"of_multiplying\": %.3f",
        separator, t.kind.c_str(), t.threads, static_cast<long long>(t.m), t.seconds * 1e3, t.gb_s, t.of_reading,
        t.of_reading_median, t.of_multiplying);
    for (const Timing& other : timings) {
      const bool same_work = other.kind == "bf16" && other.m == t.m && other.threads == t.threads;
      if (same_work) std::printf(", \"times_bf16\": %.2f", other.seconds / t.seconds);
    }
    std::printf("}");
    separator = ", ";
  }
  std::printf("]}\n");
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
  std::printf("target %s, W [%lld, %lld], groups of %lld, %d rounds\n", cpu_target_name(), static_cast<long long>(o.n),
              static_cast<long long>(o.k), static_cast<long long>(o.group), o.rounds);
  const std::pair<const char*, DType> kinds[] = {{"bf16", DType::kBFloat16},
                                                 {"int8", DType::kBFloat16},
                                                 {"int4", DType::kBFloat16},
                                                 {"fp16", DType::kFloat16},
                                                 {"fp32", DType::kFloat32}};
  std::vector<Subject> subjects;
  for (const auto& [name, dtype] : kinds) {
    const bool is_default = dtype == DType::kBFloat16;
    if (o.kind.empty() ? !is_default : o.kind != "all" && o.kind != name) continue;
    Subject& subject = subjects.emplace_back();
    subject.name = name;
    subject.dtype = dtype;
    subject.bits = subject.name == "int4" ? 4 : subject.name == "int8" ? 8 : 0;
    subject.build(o);
  }
  std::vector<int> teams = {1, 2};
  if (o.threads > 0) teams = {o.threads};
  std::vector<Timing> timings;
  for (const int threads : teams) {
    Team team(threads);
    o.threads = threads;
    for (const int64_t m : {1, 2, 4, 8, 16, 32}) {
      if (o.m == 0 || o.m == m) compare(subjects, m, o, team, timings);
    }
  }
  print_result(o, timings);
  return 0;
}
