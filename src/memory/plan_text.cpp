// A memory plan as a table and as JSON.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "memory/machine_limits.h"

namespace deepscale {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kNameWidth = 26, kColumnWidth = 12;

std::string cell(int64_t bytes) {
  return bytes == 0 ? fmt::format("{:>{}}", "-", kColumnWidth)
                    : fmt::format("{:>{}.3f}", static_cast<double>(bytes) / (1 << 30), kColumnWidth);
}

std::vector<MemoryPlace> used_places(const MemoryPlan& plan) {
  std::vector<MemoryPlace> places;
  for (const MemoryPlace place : kMemoryPlaces) {
    if (plan.bytes(place) > 0) places.push_back(place);
  }
  return places;
}

std::string line(std::string_view name, const std::vector<MemoryPlace>& places, auto bytes_of) {
  std::string text = fmt::format("{:<{}}", name, kNameWidth);
  for (const MemoryPlace place : places) text += cell(bytes_of(place));
  return text;
}

std::string limits_text(const MemoryPlan& plan, const MachineLimits& limits) {
  std::string text;
  if (plan.bytes(MemoryPlace::kDevice) > 0) {
    text += fmt::format("device: {} of {} free\n", readable_bytes(plan.bytes(MemoryPlace::kDevice)),
                        limits.device_bytes ? readable_bytes(*limits.device_bytes) : "unknown memory");
  }
  text += fmt::format("host: {} of {} available ({} in all)\n", readable_bytes(plan.host_memory_bytes()),
                      readable_bytes(limits.memory.available_bytes), readable_bytes(limits.memory.total_bytes));
  for (const MemoryLimit& group : limits.groups) {
    text += fmt::format("{}: {}, {} used\n", group.source, readable_bytes(group.limit_bytes),
                        readable_bytes(group.used_bytes));
  }
  for (const ProcessLimit& limit : limits.process) {
    text += fmt::format("{}: {}, {} used\n", limit.name, readable_bytes(limit.limit_bytes),
                        readable_bytes(limit.used_bytes));
  }
  if (limits.lockable_bytes && plan.bytes(MemoryPlace::kHostPinned) > 0) {
    text += fmt::format("memory that may be locked: {}\n", readable_bytes(*limits.lockable_bytes));
  }
  if (limits.shares_through_folder && limits.shared_folder_bytes) {
    text += fmt::format("/dev/shm: {} free\n", readable_bytes(*limits.shared_folder_bytes));
  }
  for (const DiskLimit& disk : limits.disks) {
    text += fmt::format("disk of {}: {} free\n", disk.path, readable_bytes(disk.available_bytes));
  }
  return text;
}

Json limits_json(const MachineLimits& limits) {
  Json json = {
      {"memory", {{"total_bytes", limits.memory.total_bytes}, {"available_bytes", limits.memory.available_bytes}}},
      {"groups", Json::array()},
      {"process", Json::array()},
      {"device_bytes", nullptr},
      {"lockable_bytes", nullptr},
      {"shared_folder_bytes", nullptr},
      {"shares_through_folder", limits.shares_through_folder},
      {"disks", Json::array()}};
  if (limits.device_bytes) json["device_bytes"] = *limits.device_bytes;
  if (limits.lockable_bytes) json["lockable_bytes"] = *limits.lockable_bytes;
  if (limits.shared_folder_bytes) json["shared_folder_bytes"] = *limits.shared_folder_bytes;
  for (const MemoryLimit& group : limits.groups) {
    json["groups"].push_back(
        {{"source", group.source}, {"limit_bytes", group.limit_bytes}, {"used_bytes", group.used_bytes}});
  }
  for (const ProcessLimit& limit : limits.process) {
    json["process"].push_back(
        {{"name", limit.name}, {"limit_bytes", limit.limit_bytes}, {"used_bytes", limit.used_bytes}});
  }
  for (const DiskLimit& disk : limits.disks) {
    json["disks"].push_back({{"path", disk.path}, {"available_bytes", disk.available_bytes}});
  }
  return json;
}

}  // namespace

std::string to_table(const MemoryPlan& plan, const MachineLimits& limits) {
  const std::vector<MemoryPlace> places = used_places(plan);
  std::string text =
      fmt::format("memory of each of {} rank{}, {} on a host; {} parameters, {} trained (GiB)\n", plan.ranks,
                  plan.ranks == 1 ? "" : "s", plan.ranks_per_host, plan.params_numel, plan.trainable_numel);
  text += fmt::format("{:<{}}", "", kNameWidth);
  for (const MemoryPlace place : places) text += fmt::format("{:>{}}", name_of(place), kColumnWidth);
  text += "\n";
  for (size_t r = 0; r < plan.rows.size();) {
    const PlannedState state = plan.rows[r].state;
    std::string remarks;
    for (; r < plan.rows.size() && plan.rows[r].state == state; ++r) {
      if (plan.rows[r].remark.empty()) continue;
      remarks += (remarks.empty() ? "  " : "; ") + plan.rows[r].remark;
    }
    text += line(name_of(state), places, [&](MemoryPlace place) { return plan.bytes(state, place); }) + remarks + "\n";
  }
  text += line("a rank", places, [&](MemoryPlace place) { return plan.bytes(place); }) + "\n";
  if (plan.ranks_per_host > 1) {
    text += line(fmt::format("a host ({} ranks)", plan.ranks_per_host), places,
                 [&](MemoryPlace place) { return plan.bytes(place) * plan.ranks_per_host; }) +
            "\n";
  }
  for (const std::string& note : plan.notes) text += "note: " + note + "\n";
  return text + limits_text(plan, limits);
}

std::string to_json(const MemoryPlan& plan, const MachineLimits& limits, int indent) {
  Json json = {{"ranks", plan.ranks},
               {"ranks_per_host", plan.ranks_per_host},
               {"parameters", plan.params_numel},
               {"trainable_parameters", plan.trainable_numel},
               {"rows", Json::array()},
               {"rank_bytes", Json::object()},
               {"host_bytes", Json::object()}};
  for (const PlanRow& row : plan.rows) {
    json["rows"].push_back(
        {{"state", name_of(row.state)}, {"place", name_of(row.place)}, {"bytes", row.bytes}, {"remark", row.remark}});
  }
  for (const MemoryPlace place : kMemoryPlaces) {
    json["rank_bytes"][std::string(name_of(place))] = plan.bytes(place);
    json["host_bytes"][std::string(name_of(place))] = plan.bytes(place) * plan.ranks_per_host;
  }
  json["notes"] = plan.notes;
  json["limits"] = limits_json(limits);
  json["fits"] = fits(plan, limits);
  json["shortages"] = Json::array();
  for (const Shortage& shortage : check_plan(plan, limits)) {
    json["shortages"].push_back({{"resource", shortage.resource},
                                 {"needed_bytes", shortage.needed_bytes},
                                 {"available_bytes", shortage.available_bytes},
                                 {"missing_bytes", shortage.missing_bytes()},
                                 {"fatal", shortage.fatal},
                                 {"remedy", shortage.remedy}});
  }
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace deepscale
