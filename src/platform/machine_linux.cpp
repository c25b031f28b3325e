#include <sched.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "base/environment.h"
#include "base/error.h"
#include "platform/machine.h"

extern char** environ;

namespace deepscale {
namespace fs = std::filesystem;

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
}

std::vector<int> usable_cpus() {
  // Machines may have more CPUs than cpu_set_t holds: grow until the kernel accepts the size.
  for (int count = CPU_SETSIZE; count <= CPU_SETSIZE * 64; count *= 2) {
    cpu_set_t* set = CPU_ALLOC(count);
    const size_t bytes = CPU_ALLOC_SIZE(count);
    std::vector<int> cpus;
    if (sched_getaffinity(0, bytes, set) == 0) {
      for (int cpu = 0; cpu < count; ++cpu) {
        if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
      }
    }
    CPU_FREE(set);
    if (!cpus.empty()) return cpus;
  }
  return {0};
}

int visible_gpu_count() {
  int count = 0;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/dev", ignored)) {
    const std::string name = entry.path().filename().string();
    constexpr std::string_view kPrefix = "nvidia";
    if (name.size() > kPrefix.size() && name.starts_with(kPrefix) &&
        name.find_first_not_of("0123456789", kPrefix.size()) == std::string::npos) {
      ++count;
    }
  }
  return count;
}

fs::path executable_path() {
  std::error_code error;
  fs::path path = fs::read_symlink("/proc/self/exe", error);
  if (error) ds_throw<IoError>("cannot read /proc/self/exe: {}; is /proc mounted?", error.message());
  return path;
}

std::optional<fs::path> find_program(const std::string& program) {
  const auto is_executable = [](const fs::path& path) {
    std::error_code ignored;
    return access(path.c_str(), X_OK) == 0 && !fs::is_directory(path, ignored);
  };
  if (program.find('/') != std::string::npos) {
    if (is_executable(program)) return program;
    return std::nullopt;
  }
  const std::string search = environment("PATH").value_or("/usr/local/bin:/usr/bin:/bin");
  for (size_t begin = 0; begin <= search.size();) {
    const size_t end = std::min(search.find(':', begin), search.size());
    const std::string folder = search.substr(begin, end - begin);
    fs::path candidate = fs::path(folder.empty() ? "." : folder) / program;
    if (is_executable(candidate)) return candidate;
    begin = end + 1;
  }
  return std::nullopt;
}

std::map<std::string, std::string> environment_variables() {
  std::map<std::string, std::string> variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t equals = text.find('=');
    if (equals == std::string_view::npos || equals == 0) continue;
    variables.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return variables;
}

bool output_is_terminal() {
  return isatty(STDOUT_FILENO) != 0;
}

bool error_output_is_terminal() {
  return isatty(STDERR_FILENO) != 0;
}

bool is_readable(const fs::path& path) {
  return access(path.c_str(), R_OK) == 0;
}

int64_t total_memory_bytes() {
  struct sysinfo info = {};
  if (sysinfo(&info) != 0) return 0;
  return static_cast<int64_t>(info.totalram) * static_cast<int64_t>(info.mem_unit);
}

int64_t shared_memory_bytes() {
  struct statvfs info = {};
  if (statvfs("/dev/shm", &info) != 0) return 0;
  return static_cast<int64_t>(info.f_blocks) * static_cast<int64_t>(info.f_frsize);
}

std::vector<std::string> program_arguments(int count, char** values) {
  return {values + 1, values + count};
}

std::vector<std::string> python_candidates(const std::string& folder) {
  return {folder + "/python3", folder + "/python", "python3", "python"};
}

std::string system_description() {
  struct utsname info = {};
  if (uname(&info) != 0) return "Linux";
  return fmt::format("{} {} {}", info.sysname, info.release, info.machine);
}

}  // namespace deepscale
