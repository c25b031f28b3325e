// Engine, ParamUnit and PlanGroups for Python; the contract is python/deepspeed/_C.pyi.
#include "base/error.h"
#include "bindings/bindings.h"
#include "engine/engine.h"
#include "engine/engine_options.h"
#include "platform/private_memory.h"

namespace deepscale {
namespace {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;
using ParamTuple = std::tuple<std::string, at::Tensor, int, std::shared_ptr<ParamUnit>>;

template <typename T>
T option(const py::dict& options, const char* name, T fallback) {
  return options.contains(name) ? options[name].template cast<T>() : fallback;
}

NativeOptimizerOptions optimizer_options(const py::dict& options) {
  NativeOptimizerOptions result;
  result.kind = NativeOptimizerOptions::kind_from(option<std::string>(options, "type", "none"));
  result.decoupled = option(options, "decoupled", true);
  result.bias_correction = option(options, "bias_correction", true);
  result.nesterov = option(options, "nesterov", false);
  result.momentum = option(options, "momentum", true);
  result.eps_inside_sqrt = option(options, "eps_inside_sqrt", false);
  result.max_coeff = option(options, "max_coeff", 10.0);
  result.min_coeff = option(options, "min_coeff", 0.01);
  result.states_as_master = option<std::string>(options, "state_dtype", "fp32") == "param";
  return result;
}

std::unique_ptr<Engine> make_engine(const std::string& config_json, const PlanGroups& groups,
                                    const std::vector<ParamTuple>& params, const py::dict& optimizer) {
  const NativeOptimizerOptions native = optimizer_options(optimizer);
  std::vector<EngineParam> engine_params;
  engine_params.reserve(params.size());
  for (const auto& [name, tensor, group, unit] : params) engine_params.push_back({name, tensor, group, unit});
  const py::gil_scoped_release release;
  const Config config = Config::parse(config_json, groups.data.size(), ParseMode::kZeroInit);
  return std::make_unique<Engine>(make_engine_options(config, groups, native), std::move(engine_params));
}

std::shared_ptr<ParamUnit> make_unit(const std::string& name, const std::vector<std::string>& names,
                                     const std::vector<at::Tensor>& params, const PlanGroups& groups,
                                     const py::object& dtype, const std::shared_ptr<FileTier>& tier, bool keep_values) {
  const auto type = torch::python::detail::py_object_to_dtype(dtype);
  std::vector<NamedParam> named;
  named.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) named.push_back({names.at(i), params[i]});
  const py::gil_scoped_release release;
  return std::make_shared<ParamUnit>(name, std::move(named), plan_for_sharded_parameters(groups), type, tier.get(),
                                     keep_values ? ParamUnit::Values::kKeep : ParamUnit::Values::kUndefined);
}

at::Tensor unit_piece(ParamUnit& unit, int index) {
  const ShardLayout::Piece* piece = unit.piece_of(index);
  if (piece == nullptr) return at::empty({0}, unit.shard().options());
  if (!unit.in_file()) return unit.shard().narrow(0, piece->shard_offset, piece->length);
  unit.visit();
  at::Tensor copy = unit.shard_part(piece->shard_offset, piece->length).clone();
  unit.end_visit(/*changed=*/false);
  return copy;
}

py::dict file_facts(const FileTierFacts& facts) {
  using py::literals::operator""_a;
  return py::dict("file_bytes"_a = facts.file_bytes, "read_bytes"_a = facts.read_bytes,
                  "written_bytes"_a = facts.written_bytes, "wait_seconds"_a = facts.wait_seconds,
                  "pool_bytes"_a = facts.pool_bytes, "peak_pool_bytes"_a = facts.peak_pool_bytes,
                  "beyond_pool_bytes"_a = facts.beyond_pool_bytes, "resident_bytes"_a = facts.resident_bytes,
                  "pinned_bytes"_a = facts.pinned_bytes, "pin_refusal"_a = facts.pin_refusal,
                  "queue_depth"_a = facts.depth, "block_size"_a = facts.block_bytes, "direct"_a = facts.direct,
                  "engine"_a = async_engine_name(facts.engine.engine), "engine_reason"_a = facts.engine.reason);
}

void register_unit(py::module_& m) {
  py::class_<PlanGroups>(m, "PlanGroups")
      .def(py::init([](const Communicator& data, std::optional<Communicator> shard, std::optional<Communicator> replica,
                       std::optional<Communicator> node) {
             return PlanGroups{data, shard.value_or(data), replica.value_or(Communicator::self()),
                               node.value_or(Communicator::self())};
           }),
           py::arg("data"), py::arg("shard") = py::none(), py::arg("replica") = py::none(),
           py::arg("node") = py::none());
  py::class_<FileTier, std::shared_ptr<FileTier>>(m, "FileTier")
      .def(py::init([](const std::string& config_json) {
             const Config config = Config::parse(config_json, 1, ParseMode::kZeroInit);
             const auto options = param_file_options(config);
             DS_CHECK_AS(ConfigError, options.has_value(), "zero_optimization.offload_param.device is not \"nvme\"");
             return std::make_shared<FileTier>(open_tier(*options, "offload_param"));
           }),
           py::arg("config_json"), ReleaseGil())
      .def("__eq__", [](const FileTier& tier, const FileTier& other) { return tier == other; })
      .def("facts", [](const FileTier& tier) { return file_facts(tier.facts()); });
  py::class_<ParamUnit, std::shared_ptr<ParamUnit>>(m, "ParamUnit")
      .def(py::init(&make_unit), py::arg("name"), py::arg("names"), py::arg("params"), py::arg("groups"),
           py::arg("dtype"), py::arg("tier") = py::none(), py::arg("keep_values") = true)
      .def_property_readonly("name", &ParamUnit::name)
      .def_property_readonly("gathered", &ParamUnit::gathered)
      .def_property_readonly("params",
                             [](const ParamUnit& unit) {
                               std::vector<at::Tensor> tensors;
                               for (int i = 0; i < unit.size(); ++i) tensors.push_back(unit.param(i));
                               return tensors;
                             })
      .def("move_to_file", &ParamUnit::move_to_file, py::arg("tier"), ReleaseGil())
      .def_property_readonly("in_file", &ParamUnit::in_file)
      .def_property_readonly(
          "tier",
          [](const ParamUnit& unit) { return unit.in_file() ? std::make_shared<FileTier>(unit.tier()) : nullptr; })
      .def("gather", &ParamUnit::hold, ReleaseGil())
      .def("release", &ParamUnit::unhold, ReleaseGil())
      .def_property_readonly("writable_in_place", &ParamUnit::writable_in_place)
      .def("store_gathered", &ParamUnit::store_gathered, ReleaseGil())
      .def("shard", &unit_piece, py::arg("index"))
      .def("local_piece",
           [](ParamUnit& unit, int index) {
             const ShardLayout::Piece* piece = unit.piece_of(index);
             return std::make_pair(piece == nullptr ? int64_t{0} : piece->tensor_offset, unit_piece(unit, index));
           })
      .def("full_shape", &ParamUnit::shape, py::arg("index"))
      .def("read_full", &ParamUnit::read_full, py::arg("index"), ReleaseGil())
      .def("write_full", &ParamUnit::write_full, py::arg("index"), py::arg("value"), py::arg("root") = -1,
           ReleaseGil());
}

void register_fragment(py::module_& m) {
  py::class_<Fragment>(m, "Fragment")
      .def_readonly("index", &Fragment::model_index)
      .def_readonly("group", &Fragment::group)
      .def_readonly("offset", &Fragment::offset)
      .def_readonly("length", &Fragment::length)
      .def_readonly("master", &Fragment::master)
      .def_property_readonly("grad", [](const Fragment& fragment) {
        return fragment.grad.defined() ? std::optional<at::Tensor>(fragment.grad) : std::nullopt;
      });
}

std::map<std::string, double> scaler_state(Engine& engine) {
  const LossScaler::State& state = engine.loss_scaler().state();
  return {{"scale", state.scale},
          {"iteration", static_cast<double>(state.iteration)},
          {"last_overflow", static_cast<double>(state.last_overflow)},
          {"hysteresis_left", static_cast<double>(state.hysteresis_left)}};
}

void load_scaler_state(Engine& engine, const std::map<std::string, double>& state) {
  engine.loss_scaler().load({state.at("scale"), static_cast<int64_t>(state.at("iteration")),
                             static_cast<int64_t>(state.at("last_overflow")),
                             static_cast<int64_t>(state.at("hysteresis_left"))});
}

py::dict file_use(const Engine& engine) {
  const Engine::FileUse use = engine.file_use();
  py::dict found;
  if (use.optimizer) found["optimizer"] = file_facts(*use.optimizer);
  if (use.parameters) found["parameters"] = file_facts(*use.parameters);
  return found;
}

std::map<std::string, int64_t> memory_map(const Engine& engine) {
  const Engine::Memory memory = engine.memory_bytes();
  return {{"parameters", memory.parameters},
          {"gradients", memory.gradients},
          {"master", memory.master},
          {"optimizer", memory.optimizer},
          {"buckets", memory.buckets}};
}

void register_steps(py::class_<Engine>& engine) {
  engine.def("pre_forward", &Engine::pre_forward, py::arg("unit"), py::arg("inputs"), ReleaseGil())
      .def("post_forward", &Engine::post_forward, py::arg("unit"), py::arg("outputs"), ReleaseGil())
      .def("reset_order", &Engine::reset_order)
      .def("backward_seed", &Engine::backward_seed, py::arg("loss"), py::arg("divide_by"), ReleaseGil())
      .def("begin_backward", &Engine::begin_backward)
      .def("finish_backward", &Engine::finish_backward, ReleaseGil())
      .def("step", &Engine::step, py::arg("hyper"), ReleaseGil())
      .def("zero_grad", &Engine::zero_grad, ReleaseGil())
      .def("prepare_step", &Engine::prepare_step, ReleaseGil())
      .def("finish_step", &Engine::finish_step, py::arg("applied"), ReleaseGil())
      .def("check_whole", &Engine::check_whole)
      .def("fragments", &Engine::fragments);
}

void register_facts(py::class_<Engine>& engine) {
  engine.def_property_readonly("grad_norm", &Engine::grad_norm)
      .def_property_readonly("overflow", &Engine::overflow)
      .def_property_readonly("nonfinite_parameter", &Engine::nonfinite_parameter)
      .def_property_readonly("loss_scale", [](Engine& self) { return self.loss_scaler().scale(); })
      .def_property_readonly("skipped_steps", &Engine::skipped_steps)
      .def_property_readonly("optimizer_steps", &Engine::optimizer_steps)
      .def("scaler_state", &scaler_state)
      .def("load_scaler_state", &load_scaler_state, py::arg("state"))
      .def("memory_bytes", &memory_map)
      .def("file_tier_facts", &file_use)
      .def("description", &Engine::description)
      .def("get_step", &Engine::optimizer_steps)
      .def("begin_load", &Engine::begin_load)
      .def("reset_optimizer", &Engine::reset_optimizer, py::arg("states_follow") = false)
      .def("end_load", &Engine::end_load, py::arg("states") = true)
      .def("set_step", &Engine::set_optimizer_steps, py::arg("step"));
}

void register_state(py::class_<Engine>& engine) {
  engine.def("state_keys", &Engine::state_keys)
      .def("read_full", &Engine::read_full, py::arg("index"), py::arg("key"), ReleaseGil())
      .def("write_full", &Engine::write_full, py::arg("index"), py::arg("key"), py::arg("value"), ReleaseGil())
      .def("read_local", &Engine::read_local, py::arg("index"), py::arg("key"), ReleaseGil())
      .def("write_local", &Engine::write_local, py::arg("index"), py::arg("key"), py::arg("value"), ReleaseGil())
      .def("fragment_of",
           [](const Engine& self, int index) {
             const Engine::PieceRange range = self.fragment_of(index);
             return std::make_pair(range.offset, range.length);
           })
      .def("refresh_from_parameters", &Engine::refresh_from_parameters, ReleaseGil())
      .def("refresh_parameters", &Engine::refresh_parameters, ReleaseGil())
      .def("destroy", &Engine::destroy);
}

}  // namespace

void register_engine(py::module_& m) {
  m.def("trim_heap", &trim_heap, ReleaseGil());
  register_unit(m);
  register_fragment(m);
  py::class_<Engine> engine(m, "Engine");
  engine.def(py::init(&make_engine), py::arg("config_json"), py::arg("groups"), py::arg("params"),
             py::arg("optimizer"));
  register_steps(engine);
  register_facts(engine);
  register_state(engine);
}

}  // namespace deepscale
