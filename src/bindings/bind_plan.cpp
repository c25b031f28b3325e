// The memory plan for Python: shapes of a model that exists in, text out; contracts in engine/plan_builder.h.
#include "bindings/bindings.h"
#include "comm/communicator.h"
#include "engine/plan_builder.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

using ShapeTuple = std::tuple<std::string, std::vector<int64_t>, py::object, bool, std::string>;

ModelShapes shapes_of(const std::vector<ShapeTuple>& params) {
  ModelShapes shapes;
  shapes.source = "the model";
  for (const auto& [name, shape, dtype, trainable, unit] : params) {
    const DType type = to_dtype(torch::python::detail::py_object_to_dtype(dtype));
    shapes.params.push_back({name, shape, type, trainable, unit});
  }
  return shapes;
}

/// What the processes of a host hold already of what the plan counts is no need of its own. held: of one rank.
MachineLimits limits_beside(const Config& config, int64_t held_memory, int64_t held_file, int ranks_per_host) {
  const ZeroOptions& zero = config->zero;
  std::vector<std::string> folders;
  if (zero.offload_param) folders.push_back(zero.offload_param->nvme_path.value_or(""));
  if (zero.offload_optimizer) folders.push_back(zero.offload_optimizer->nvme_path.value_or(""));
  MachineLimits limits = read_machine_limits(folders);
  const int64_t host_memory = held_memory * ranks_per_host;
  limits.memory.available_bytes += host_memory;
  for (MemoryLimit& group : limits.groups) group.used_bytes = std::max<int64_t>(0, group.used_bytes - host_memory);
  for (ProcessLimit& limit : limits.process) limit.used_bytes = std::max<int64_t>(0, limit.used_bytes - held_memory);
  // A folder that cannot be used at all is named better by whoever opens a file there.
  std::erase_if(limits.disks, [](const DiskLimit& disk) { return disk.available_bytes == 0; });
  for (DiskLimit& disk : limits.disks) disk.available_bytes += held_file * ranks_per_host;
  return limits;
}

py::dict plan_memory(const std::string& config_json, const std::vector<ShapeTuple>& params, const py::dict& world) {
  World ranks;
  ranks.ranks = world["ranks"].cast<int>();
  ranks.ranks_per_host = world["ranks_per_host"].cast<int>();
  ranks.accelerator = world["accelerator"].cast<bool>();
  ranks.trains = world["trains"].cast<bool>();
  if (!world["states"].is_none()) {
    ranks.optimizer = PlannedOptimizer{world["states"].cast<int>(), world["external"].cast<bool>()};
  }
  const ModelShapes shapes = shapes_of(params);
  const auto held_memory = world["held_memory_bytes"].cast<int64_t>();
  const auto held_file = world["held_file_bytes"].cast<int64_t>();
  std::optional<int64_t> device;
  if (!world["device_bytes"].is_none()) device = world["device_bytes"].cast<int64_t>();
  const Config config = Config::parse(config_json, ranks.ranks, ParseMode::kZeroInit);
  MachineLimits limits =
      limits_beside(config, held_memory, held_file, ranks.ranks_per_host > 0 ? ranks.ranks_per_host : ranks.ranks);
  limits.device_bytes = device;
  const MemoryFacts memory = process_memory_facts();
  ranks.memory_total_bytes = memory.total_bytes;
  ranks.memory_available_bytes = memory.available_bytes + held_memory;
  const MemoryPlan plan = make_memory_plan(config, shapes, ranks);
  py::dict answer;
  answer["table"] = to_table(plan, limits);
  answer["json"] = to_json(plan, limits);
  answer["misfit"] = explain_misfit(config, shapes, ranks, limits);
  return answer;
}

}  // namespace

void register_plan(py::module_& m) {
  m.def("plan_memory", &plan_memory, py::arg("config_json"), py::arg("params"), py::arg("world"));
}

}  // namespace deepscale
