// The machine's part of the report: system, processor, devices, memory.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/environment.h"
#include "base/error.h"
#include "launcher/report.h"
#include "platform/async_file.h"
#include "platform/cpu_features.h"
#include "platform/machine.h"
#include "platform/memory_lock.h"
#include "platform/resources.h"
#include "platform/simd_target.h"
#include "platform/system_facts.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;
using Missing = ReportLine::Missing;

constexpr int64_t kSmallSharedMemory = int64_t{512} << 20;
constexpr int64_t kSmallLockLimit = int64_t{64} << 20;

std::string gigabytes(int64_t bytes) {
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) / (1 << 30));
}

std::string compiler() {
#if defined(__clang__)
  return fmt::format("clang {}.{}.{}", __clang_major__, __clang_minor__, __clang_patchlevel__);
#elif defined(__GNUC__)
  return fmt::format("g++ {}.{}.{}", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#elif defined(_MSC_VER)
  return fmt::format("MSVC {}", _MSC_VER);
#else
  return "unknown";
#endif
}

/// The toolkit's version beside nvcc, from its version.json; nvcc itself is not started.
ReportLine nvcc_line() {
  ReportLine line{"versions.nvcc", "nvcc version", Missing{}, "none (not needed)", ""};
  std::optional<fs::path> nvcc = find_program("nvcc");
  if (const auto home = environment("CUDA_HOME"); !nvcc && home) nvcc = find_program(*home + "/bin/nvcc");
  if (!nvcc) return line;
  std::error_code ignored;
  const fs::path real = fs::canonical(*nvcc, ignored);
  std::ifstream file(real.parent_path().parent_path() / "version.json");
  const auto json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  const nlohmann::json::json_pointer path("/cuda/version");
  const bool known = json.is_object() && json.contains(path) && json.at(path).is_string();
  // Packages of distributions have no such file, but a folder like cuda-13.0.
  const std::string folder = real.parent_path().parent_path().filename().string();
  line.value = known                         ? json.at(path).get<std::string>()
               : folder.starts_with("cuda-") ? folder.substr(folder.find('-') + 1)
                                             : "unknown";
  line.text = fmt::format("{} ({})", std::get<std::string>(line.value), nvcc->string());
  return line;
}

void add_processor_lines(std::vector<ReportLine>& lines) {
  const CpuFeatures features = cpu_features();
  const std::string name = cpu_name();
  const int cores = usable_cpu_count();
  lines.push_back({"cpu.name", "processor", name, name.empty() ? "unknown" : "", ""});
  lines.push_back({"cpu.cores", "usable cores", int64_t{cores}, "", ""});
  lines.push_back({"cpu.features", "processor features", features.names(), "", ""});
  const std::vector<std::string_view> usable = usable_simd_targets(features);
  const auto forced = environment("DEEPSCALE_CPU_TARGET");
  const std::string target = forced.value_or(std::string(usable.front()));
  ReportLine line{"cpu.kernel_variant", "kernel variant", target, forced ? target + " (DEEPSCALE_CPU_TARGET)" : "", ""};
  if (std::find(usable.begin(), usable.end(), target) == usable.end()) {
    line.warning = fmt::format("this processor has {}; correct or unset DEEPSCALE_CPU_TARGET", fmt::join(usable, ", "));
  } else if (target == "SCALAR") {
    line.warning = "the kernels run without SIMD, several times slower";
  }
  lines.push_back(std::move(line));
}

void add_gpu_lines(std::vector<ReportLine>& lines) {
  std::vector<std::string> names = gpu_names();
  const auto usable = static_cast<size_t>(visible_gpu_count());
  const size_t known = names.size();
  if (known == 0) names.resize(usable, "NVIDIA GPU");
  std::string text = names.empty() ? "none" : fmt::format("{}", names.front());
  for (size_t i = 1; i < names.size(); ++i) text += ", " + names[i];
  ReportLine line{"devices.gpus", "GPUs", names, text, ""};
  if (known > usable) {
    line.warning = fmt::format(
        "the driver has {} GPUs, this process can open {}; containers need them passed in (docker: --gpus all)", known,
        usable);
  }
  lines.push_back(std::move(line));
  lines.push_back({"devices.gpus_usable", "usable GPUs", static_cast<int64_t>(usable), "", ""});
  const auto driver = gpu_driver_version();
  lines.push_back({"versions.gpu_driver", "GPU driver version",
                   driver ? ReportLine::Value(*driver) : ReportLine::Value(Missing{}), "", ""});
}

void add_memory_lines(std::vector<ReportLine>& lines) {
  const int64_t machine = total_memory_bytes();
  const MemoryFacts memory = memory_facts();
  const int64_t shared = shared_memory_bytes();
  const bool limited = memory.total_bytes > 0 && memory.total_bytes < machine;
  lines.push_back({"memory.total_bytes", "memory", machine, gigabytes(machine), ""});
  lines.push_back({"memory.limit_bytes", "memory limit of this process",
                   limited ? ReportLine::Value(memory.total_bytes) : ReportLine::Value(Missing{}),
                   limited ? gigabytes(memory.total_bytes) + " (cgroup or job)" : "none", ""});
  lines.push_back(
      {"memory.available_bytes", "available memory", memory.available_bytes, gigabytes(memory.available_bytes), ""});
  lines.push_back(
      {"memory.shared_bytes", "shared memory (/dev/shm) size", shared, gigabytes(shared),
       shared < kSmallSharedMemory
           ? "data loaders' workers and NCCL use it, and 512 MB is little for them; containers: --shm-size=8g"
           : ""});
}

void add_lock_line(std::vector<ReportLine>& lines) {
  const MemoryLockFacts lock = memory_lock_facts();
  const bool small = lock.limit_bytes && *lock.limit_bytes < kSmallLockLimit;
  lines.push_back(
      {"memory.lock_limit_bytes", "memory that may be locked",
       lock.limit_bytes ? ReportLine::Value(*lock.limit_bytes) : ReportLine::Value(Missing{}),
       lock.limit_bytes ? fmt::format("{} ({})", gigabytes(*lock.limit_bytes), lock.limit_name) : "no limit",
       small ? "too little for pinned memory; " + lock.how_to_raise : ""});
}

void add_file_lines(std::vector<ReportLine>& lines) {
  ReportLine engine{"files.engine", "asynchronous files", Missing{}, "", ""};
  ReportLine uring{"files.why_not_io_uring", "", Missing{}, "", ""};
  try {
    const AsyncEngineChoice choice = choose_async_engine();
    engine.value = std::string(async_engine_name(choice.engine));
    if (!choice.reason.empty()) {
      uring.value = choice.reason;
      engine.text = fmt::format("{} (not io_uring: {})", async_engine_name(choice.engine), choice.reason);
    }
  } catch (const ConfigError& error) {  // DEEPSCALE_ASYNC_IO names something else
    engine.warning = error.what();
  }
  lines.push_back(std::move(engine));
  lines.push_back(std::move(uring));
}

}  // namespace

std::vector<ReportLine> machine_lines() {
  std::vector<ReportLine> lines;
  lines.push_back({"versions.compiler", "compiler of this package", compiler(), "", ""});
  lines.push_back(nvcc_line());
  lines.push_back({"versions.c_library", "C library", c_library(), "", ""});
  lines.push_back({"versions.operating_system", "operating system", operating_system_name(), "", ""});
  lines.push_back({"versions.kernel", "kernel", system_description(), "", ""});
  add_processor_lines(lines);
  add_gpu_lines(lines);
  add_memory_lines(lines);
  add_lock_line(lines);
  add_file_lines(lines);
  return lines;
}

}  // namespace deepscale
