// The parts that know no operating system: reading recorded or real files of /sys, and sharing cores.
#include "platform/topology.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/text.h"

namespace deepscale {
namespace {

constexpr int kMostCpus = 1 << 16;  // more in a list is a mistake, not a machine

std::optional<int> parse_int(std::string_view text) {
  int value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::vector<int> read_list(const TextReader& read, const std::string& path) {
  return parse_cpu_list(read(path).value_or("")).value_or(std::vector<int>{});
}

/// "Node 0 MemTotal:   131072 kB" of a node's meminfo.
int64_t node_memory(const TextReader& read, const std::string& folder) {
  const std::string text = read(folder + "/meminfo").value_or("");
  const size_t name = text.find("MemTotal:");
  if (name == std::string::npos) return 0;
  return std::strtoll(text.c_str() + name + 9, nullptr, 10) * 1024;
}

/// Usable hardware threads of one physical core.
struct Core {
  std::vector<int> cpus;
  int node = 0;
};

std::vector<Core> usable_cores(const CpuTopology& topology, std::span<const int> usable) {
  std::map<int, LogicalCpu> known;
  for (const LogicalCpu& cpu : topology.cpus) known.emplace(cpu.id, cpu);
  std::map<std::pair<int, int>, Core> cores;  // by node and core
  for (const int id : std::set<int>(usable.begin(), usable.end())) {
    const auto found = known.find(id);
    const LogicalCpu cpu = found != known.end() ? found->second : LogicalCpu{.id = id, .core = id};
    Core& core = cores[{cpu.node, cpu.core}];
    core.cpus.push_back(id);
    core.node = cpu.node;
  }
  std::vector<Core> ordered;
  for (auto& [key, core] : cores) ordered.push_back(std::move(core));
  return ordered;
}

/// First core of every rank, when no rank needs cores of two nodes; nothing when that is impossible.
std::optional<std::vector<size_t>> starts_inside_nodes(const std::vector<Core>& cores, size_t share, int ranks) {
  struct Room {
    size_t first = 0;
    size_t cores = 0;
    size_t ranks = 0;
  };
  std::vector<Room> rooms;
  for (size_t i = 0; i < cores.size(); ++i) {
    if (i == 0 || cores[i].node != cores[i - 1].node) rooms.push_back({.first = i});
    ++rooms.back().cores;
  }
  for (int rank = 0; rank < ranks; ++rank) {
    // To the node that has most cores per rank afterwards, among those with room.
    const auto fits = [&](const Room& room) { return room.cores >= (room.ranks + 1) * share; };
    Room& room = *std::max_element(rooms.begin(), rooms.end(), [&](const Room& a, const Room& b) {
      if (fits(a) != fits(b)) return fits(b);
      return a.cores * (b.ranks + 1) < b.cores * (a.ranks + 1);
    });
    if (!fits(room)) return std::nullopt;
    ++room.ranks;
  }
  std::vector<size_t> starts;
  for (const Room& room : rooms) {
    for (size_t i = 0; i < room.ranks; ++i) starts.push_back(room.first + i * share);
  }
  return starts;
}

std::optional<int> common_node(const CpuTopology& topology, const std::set<int>& nodes) {
  if (topology.nodes.size() < 2 || nodes.size() != 1) return std::nullopt;
  for (const NumaNode& node : topology.nodes) {
    if (node.id == *nodes.begin() && node.memory_bytes > 0) return node.id;
  }
  return std::nullopt;
}

size_t checked_share(size_t cores, int ranks, const char* what) {
  DS_CHECK_AS(ConfigError, ranks >= 1, "cannot share cores among {} ranks: at least one is needed", ranks);
  DS_CHECK_AS(ConfigError, cores >= static_cast<size_t>(ranks),
              "{} {} cannot be shared by {} ranks; start fewer ranks or do not bind", cores, what, ranks);
  return cores / static_cast<size_t>(ranks);
}

}  // namespace

int CpuTopology::core_count() const {
  std::set<int> cores;
  for (const LogicalCpu& cpu : cpus) cores.insert(cpu.core);
  return static_cast<int>(cores.size());
}

int CpuTopology::package_count() const {
  std::set<int> packages;
  for (const LogicalCpu& cpu : cpus) packages.insert(cpu.package);
  return static_cast<int>(packages.size());
}

std::optional<std::vector<int>> parse_cpu_list(const std::string& text) {
  std::vector<int> cpus;
  std::string_view rest = trimmed(text);
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    const size_t dash = part.find('-');
    const auto first = parse_int(part.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : parse_int(part.substr(dash + 1));
    if (!first || !last || *first < 0 || *last < *first || *last >= kMostCpus) return std::nullopt;
    for (int cpu = *first; cpu <= *last; ++cpu) cpus.push_back(cpu);
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
    if (rest.empty()) return std::nullopt;
  }
  return cpus;
}

CpuTopology sysfs_topology(const TextReader& read) {
  const std::string root = "/sys/devices/system/";
  CpuTopology topology;
  for (const int id : read_list(read, root + "cpu/online")) {
    const std::string folder = root + "cpu/cpu" + std::to_string(id) + "/topology/";
    const std::vector<int> siblings = read_list(read, folder + "thread_siblings_list");
    const auto package = parse_int(trimmed(read(folder + "physical_package_id").value_or("")));
    topology.cpus.push_back({.id = id,
                             .core = siblings.empty() ? id : *std::min_element(siblings.begin(), siblings.end()),
                             .package = std::max(0, package.value_or(0))});
  }
  for (const int id : read_list(read, root + "node/online")) {
    const std::string folder = root + "node/node" + std::to_string(id);
    topology.nodes.push_back({id, node_memory(read, folder)});
    const std::vector<int> cpus = read_list(read, folder + "/cpulist");
    for (LogicalCpu& cpu : topology.cpus) {
      if (std::binary_search(cpus.begin(), cpus.end(), cpu.id)) cpu.node = id;
    }
  }
  if (topology.nodes.empty()) topology.nodes.push_back({});
  return topology;
}

std::vector<CoreShare> share_cores(const CpuTopology& topology, std::span<const int> usable, int ranks) {
  const std::vector<Core> cores = usable_cores(topology, usable);
  const size_t share = checked_share(cores.size(), ranks, "physical cores");
  const auto starts = starts_inside_nodes(cores, share, ranks);
  std::vector<CoreShare> shares;
  for (size_t rank = 0; rank < static_cast<size_t>(ranks); ++rank) {
    const size_t start = starts ? (*starts)[rank] : rank * share;
    CoreShare mine;
    std::set<int> nodes;
    for (size_t i = start; i < start + share; ++i) {
      mine.cpus.push_back(cores[i].cpus.front());
      mine.with_siblings.insert(mine.with_siblings.end(), cores[i].cpus.begin(), cores[i].cpus.end());
      nodes.insert(cores[i].node);
    }
    std::sort(mine.cpus.begin(), mine.cpus.end());
    std::sort(mine.with_siblings.begin(), mine.with_siblings.end());
    mine.memory_node = common_node(topology, nodes);
    shares.push_back(std::move(mine));
  }
  return shares;
}

std::vector<CoreShare> share_cpu_list(const CpuTopology& topology, std::span<const int> list, int ranks) {
  const size_t share = checked_share(list.size(), ranks, "listed cores");
  std::vector<CoreShare> shares;
  for (size_t rank = 0; rank < static_cast<size_t>(ranks); ++rank) {
    const auto part = list.subspan(rank * share, share);
    CoreShare mine;
    mine.cpus.assign(part.begin(), part.end());
    std::sort(mine.cpus.begin(), mine.cpus.end());
    mine.with_siblings = mine.cpus;
    std::set<int> nodes;
    for (const LogicalCpu& cpu : topology.cpus) {
      if (std::binary_search(mine.cpus.begin(), mine.cpus.end(), cpu.id)) nodes.insert(cpu.node);
    }
    mine.memory_node = common_node(topology, nodes);
    shares.push_back(std::move(mine));
  }
  return shares;
}

}  // namespace deepscale
