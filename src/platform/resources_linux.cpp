#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <filesystem>
#include <optional>
#include <sstream>
#include <vector>

#include "platform/cgroups.h"
#include "platform/memory_limits.h"
#include "platform/resources.h"
#include "platform/text_reader.h"

namespace deepscale {
namespace {
namespace fs = std::filesystem;

std::string read_text(const std::string& path) {
  return read_text_file(path).value_or("");
}

int affinity_cpus() {
  // Machines may have more CPUs than cpu_set_t holds: grow until the kernel accepts the size.
  for (int count = CPU_SETSIZE; count <= CPU_SETSIZE * 64; count *= 2) {
    std::vector<unsigned long> mask(static_cast<size_t>(count) / (8 * sizeof(unsigned long)));
    auto* set = reinterpret_cast<cpu_set_t*>(mask.data());
    const size_t bytes = mask.size() * sizeof(unsigned long);
    if (sched_getaffinity(0, bytes, set) == 0) return CPU_COUNT_S(bytes, set);
  }
  return 1;
}

struct ProcessStat {
  char state = '\0';
  uint64_t start_time = 0;
};

std::optional<ProcessStat> process_stat(int64_t pid) {
  const std::string text = read_text("/proc/" + std::to_string(pid) + "/stat");
  // The second field is the program's name in brackets and may hold anything, brackets too.
  const size_t bracket = text.rfind(')');
  if (bracket == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(bracket + 1));
  ProcessStat stat;
  fields >> stat.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> stat.start_time;
  if (!fields) return std::nullopt;
  return stat;
}

}  // namespace

int usable_cpu_count() {
  return std::max(1, std::min(affinity_cpus(), cgroup_cpu_count(read_text_file).value_or(INT_MAX)));
}

MemoryFacts machine_memory_facts() {
  MemoryFacts facts;
  std::istringstream lines(read_text("/proc/meminfo"));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t kib = 0;
    words >> name >> kib;
    if (name == "MemTotal:") facts.total_bytes = kib * 1024;
    if (name == "MemAvailable:") facts.available_bytes = kib * 1024;
  }
  return facts;
}

MemoryFacts memory_facts() {
  return within_limits(machine_memory_facts(), memory_limits());
}

int64_t this_process_id() {
  return getpid();
}

ProcessIdentity this_process() {
  const int64_t pid = this_process_id();
  const auto stat = process_stat(pid);
  return {pid, stat ? stat->start_time : 0};
}

bool is_alive(const ProcessIdentity& process) {
  const auto stat = process_stat(process.pid);
  if (!stat) {
    // No entry: gone, unless /proc itself is missing.
    std::error_code ignored;
    return !fs::exists("/proc/self/stat", ignored);
  }
  if (stat->state == 'Z' || stat->state == 'X') return false;
  return process.start_time == 0 || stat->start_time == process.start_time;
}

int64_t this_user_id() {
  return geteuid();
}

bool make_private_folder(const fs::path& path) {
  mkdir(path.c_str(), 0700);
  struct stat status = {};
  if (lstat(path.c_str(), &status) != 0) return false;
  return S_ISDIR(status.st_mode) && status.st_uid == geteuid() && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

fs::path runtime_folder() {
  std::error_code ignored;
  return fs::is_directory("/dev/shm", ignored) ? "/dev/shm" : fs::temp_directory_path();
}

std::string host_identity() {
  std::string identity = read_text("/proc/sys/kernel/random/boot_id");
  if (!identity.empty() && identity.back() == '\n') identity.pop_back();
  if (identity.empty()) {
    std::array<char, 256> name = {};
    gethostname(name.data(), name.size() - 1);
    identity = name.data();
  }
  for (const char* space : {"/proc/self/ns/pid", "/proc/self/ns/user"}) {
    std::error_code ignored;
    identity += " " + fs::read_symlink(space, ignored).string();
  }
  return identity;
}

}  // namespace deepscale
