// cgroup v2 and v1 are read through /proc/self/cgroup; a container that mounts only its own cgroup is covered by
// looking at every ancestor down to the mount's root.
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

#include "platform/resources.h"

namespace deepscale {
namespace {
namespace fs = std::filesystem;

std::string read_text(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  return std::move(text).str();
}

/// The file's first word as a number; nothing when there is none ("max", no file).
std::optional<int64_t> read_number(const fs::path& path) {
  const std::string text = read_text(path);
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc()) return std::nullopt;
  return value;
}

/// Folders of this process's cgroup for `controller`, from its own up to the mount's root. Empty controller: version 2.
std::vector<fs::path> cgroup_folders(std::string_view controller) {
  std::istringstream lines(read_text("/proc/self/cgroup"));
  std::vector<fs::path> folders;
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool matches = controller.empty()
                             ? controllers == ",,"
                             : controllers.find("," + std::string(controller) + ",") != std::string::npos;
    if (!matches) continue;
    const fs::path roots[] = {controller.empty() ? "/sys/fs/cgroup" : fs::path("/sys/fs/cgroup") / controller,
                              "/sys/fs/cgroup/unified"};
    for (const fs::path& root : roots) {
      if (!controller.empty() && root == roots[1]) continue;
      for (fs::path path = fs::path(line.substr(second + 1)).relative_path();; path = path.parent_path()) {
        folders.push_back(root / path);
        if (path.empty()) break;
      }
    }
  }
  return folders;
}

struct Limit {
  int64_t limit;
  int64_t used;
};

/// Memory that the page cache of the cgroup could give back.
int64_t reclaimable(const fs::path& folder, std::string_view key) {
  std::istringstream lines(read_text(folder / "memory.stat"));
  std::string name;
  for (int64_t value = 0; lines >> name >> value;) {
    if (name == key) return value;
  }
  return 0;
}

std::vector<Limit> cgroup_memory_limits() {
  std::vector<Limit> limits;
  for (const fs::path& folder : cgroup_folders("")) {
    if (const auto limit = read_number(folder / "memory.max")) {
      limits.push_back(
          {*limit, read_number(folder / "memory.current").value_or(0) - reclaimable(folder, "inactive_file")});
    }
  }
  for (const fs::path& folder : cgroup_folders("memory")) {
    if (const auto limit = read_number(folder / "memory.limit_in_bytes")) {
      limits.push_back({*limit, read_number(folder / "memory.usage_in_bytes").value_or(0) -
                                    reclaimable(folder, "total_inactive_file")});
    }
  }
  return limits;
}

/// CPUs by quota, or a large number.
int64_t cgroup_cpus() {
  int64_t cpus = INT_MAX;
  for (const fs::path& folder : cgroup_folders("")) {
    std::istringstream text(read_text(folder / "cpu.max"));
    int64_t quota = 0;
    int64_t period = 0;
    if (text >> quota >> period && quota > 0 && period > 0) cpus = std::min(cpus, (quota + period - 1) / period);
  }
  for (const fs::path& folder : cgroup_folders("cpu")) {
    const auto quota = read_number(folder / "cpu.cfs_quota_us");
    const auto period = read_number(folder / "cpu.cfs_period_us");
    if (quota && period && *quota > 0 && *period > 0) cpus = std::min(cpus, (*quota + *period - 1) / *period);
  }
  return cpus;
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
  return static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(affinity_cpus(), cgroup_cpus()), 1, INT_MAX));
}

MemoryFacts memory_facts() {
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
  for (const Limit& limit : cgroup_memory_limits()) {
    if (limit.limit <= 0 || limit.limit >= facts.total_bytes) continue;
    facts.total_bytes = limit.limit;
    facts.available_bytes = std::min(facts.available_bytes, std::max<int64_t>(0, limit.limit - limit.used));
  }
  return facts;
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
