#include "platform/cgroups.h"

#include <algorithm>
#include <charconv>
#include <climits>
#include <sstream>
#include <utility>

namespace deepscale {
namespace {

/// The text's first word as a number; nothing for "max" or no file.
std::optional<int64_t> first_number(const std::optional<std::string>& text) {
  if (!text) return std::nullopt;
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (status != std::errc()) return std::nullopt;
  return value;
}

bool has_word(std::string_view list, std::string_view word) {
  const std::string padded = "," + std::string(list) + ",";
  return padded.find("," + std::string(word) + ",") != std::string::npos;
}

struct Mount {
  std::string root;  ///< the part of the tree that is visible
  std::string point;
};

/// Lines of mountinfo: "36 35 0:30 ROOT POINT options [tags] - TYPE source superoptions", proc(5).
std::optional<Mount> find_mount(const TextReader& read, std::string_view controller) {
  std::istringstream lines(read("/proc/self/mountinfo").value_or(""));
  for (std::string line; std::getline(lines, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream front(line);
    std::istringstream back(line.substr(dash + 3));
    std::string skipped;
    Mount mount;
    std::string type;
    std::string options;
    front >> skipped >> skipped >> skipped >> mount.root >> mount.point;
    back >> type >> skipped >> options;
    if (controller.empty() ? type == "cgroup2" : type == "cgroup" && has_word(options, controller)) return mount;
  }
  return std::nullopt;
}

/// This process's path in the tree, from "number:controllers:path" lines.
std::optional<std::string> group_path(const TextReader& read, std::string_view controller) {
  std::istringstream lines(read("/proc/self/cgroup").value_or(""));
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? controllers.empty() : has_word(controllers, controller)) return line.substr(second + 1);
  }
  return std::nullopt;
}

/// Memory of the group's page cache, which is given back before anybody is refused memory: all of it, as the kernel
/// counts for MemAvailable. (Pages of a tmpfs are on other lists.) prefix: of the keys that count groups below, too.
int64_t reclaimable(const TextReader& read, const std::string& folder, const std::string& prefix) {
  std::istringstream lines(read(folder + "/memory.stat").value_or(""));
  std::string name;
  int64_t sum = 0;
  for (int64_t value = 0; lines >> name >> value;) {
    if (name == prefix + "inactive_file" || name == prefix + "active_file") sum += value;
  }
  return sum;
}

}  // namespace

std::vector<std::string> cgroup_folders(const TextReader& read, std::string_view controller) {
  std::optional<std::string> path = group_path(read, controller);
  if (!path) return {};
  std::optional<Mount> mount = find_mount(read, controller);
  if (!mount) {
    mount = Mount{"/", controller.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + std::string(controller)};
  }
  // The mount shows the tree from its root on. A path outside of it ("/../x" from another namespace) has no folder.
  std::string below;
  const std::string root = mount->root == "/" ? "" : mount->root;
  if (path->starts_with(root + "/") && path->find("/..") == std::string::npos) below = path->substr(root.size());
  while (!below.empty() && below.back() == '/') below.pop_back();
  std::vector<std::string> folders;
  for (;;) {
    folders.push_back(mount->point + below);
    if (below.empty()) return folders;
    below.resize(below.rfind('/'));
  }
}

std::vector<MemoryLimit> cgroup_memory_limits(const TextReader& read) {
  std::vector<MemoryLimit> limits;
  const auto add = [&](const std::string& folder, const char* name, const char* used, const char* prefix) {
    const auto limit = first_number(read(folder + "/" + name));
    if (!limit) return;
    const int64_t in_use = first_number(read(folder + "/" + used)).value_or(0) - reclaimable(read, folder, prefix);
    limits.push_back({*limit, std::max<int64_t>(0, in_use), std::string(name) + " of " + folder});
  };
  for (const std::string& folder : cgroup_folders(read, "")) {
    add(folder, "memory.max", "memory.current", "");
    add(folder, "memory.high", "memory.current", "");
  }
  for (const std::string& folder : cgroup_folders(read, "memory")) {
    add(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_");
  }
  return limits;
}

std::optional<int> cgroup_cpu_count(const TextReader& read) {
  int64_t cpus = INT_MAX;
  const auto count = [&](int64_t quota, int64_t period) {
    if (quota > 0 && period > 0) cpus = std::min(cpus, (quota - 1) / period + 1);
  };
  for (const std::string& folder : cgroup_folders(read, "")) {
    std::istringstream text(read(folder + "/cpu.max").value_or(""));
    int64_t quota = 0;
    int64_t period = 0;
    if (text >> quota >> period) count(quota, period);
  }
  for (const std::string& folder : cgroup_folders(read, "cpu")) {
    count(first_number(read(folder + "/cpu.cfs_quota_us")).value_or(-1),
          first_number(read(folder + "/cpu.cfs_period_us")).value_or(0));
  }
  if (cpus == INT_MAX) return std::nullopt;
  return static_cast<int>(cpus);
}

}  // namespace deepscale
