// The optimizer's state as checkpoint files keep it. Whole values are read one parameter at a time (collective), and
// each rank keeps its pieces.
#include "engine/optimizer_state_writer.h"

#include <ATen/Functions.h>

#include "base/error.h"
#include "checkpoint/state_layout.h"
#include "checkpoint/torch_file.h"
#include "engine/module_checkpoint.h"
#include "zero/sharding_plan_files.h"

namespace deepscale {
namespace {

bool of_torch(const ConfiguredOptimizer& optimizer) {
  return optimizer.state_class == "SGD" || optimizer.state_class == "Adagrad" || optimizer.state_class == "AdamW" ||
         optimizer.state_class == "Adam";
}

class StateWriter {
 public:
  StateWriter(PyDocument& document, const TrainingView& view) : document_(document), view_(view) {}

 private:
  [[nodiscard]] StateLayout layout_of(const std::vector<int>& group, StateLayoutKind kind) const {
    std::vector<int64_t> numels;
    for (const int p : group) numels.push_back(c10::multiply_integers(view_.params.params[p].shape));
    return {kind, std::move(numels), kind == StateLayoutKind::kUnpadded ? 1 : view_.ranks};
  }

  [[nodiscard]] at::Tensor full(int param, const std::string& key) const {
    const auto value = view_.engine.read_full(param, key);
    return value ? value->reshape({-1}).to(at::kCPU, at::kFloat)
                 : at::zeros({c10::multiply_integers(view_.params.params[param].shape)}, at::kFloat);
  }

  /// This rank's flat tensor of one group and key. Collective.
  [[nodiscard]] at::Tensor flat(const std::vector<int>& group, const StateLayout& layout,
                                const std::string& key) const {
    const at::Tensor values = at::zeros({layout.partition_numel()}, at::kFloat);
    const int here = state_file_form(view_.config->zero) == StateFileForm::kWhole ? 0 : view_.rank;
    for (size_t i = 0; i < group.size(); ++i) {
      const at::Tensor whole = full(group[i], key);
      for (const StatePiece& piece : layout.pieces(static_cast<int>(i))) {
        if (piece.rank != here) continue;
        values.narrow(0, piece.start, piece.length).copy_(whole.narrow(0, piece.offset, piece.length));
      }
    }
    return values;
  }

  PyValue step_value() const {
    const int64_t step = view_.engine.optimizer_steps();
    if (!of_torch(view_.optimizer)) return step;
    return add_tensor(document_, at::full({}, static_cast<double>(step), at::kFloat));
  }

  /// torch's state dictionary over one flat tensor per group. Collective.
  PyNode* flat_base_state(StateLayoutKind kind) const {
    PyNode* states = document_.dict();
    for (size_t g = 0; view_.engine.optimizer_steps() > 0 && g < view_.groups.size(); ++g) {
      const StateLayout layout = layout_of(view_.groups[g], kind);
      PyNode* state = document_.dict();
      state->set("step", step_value());
      for (const auto& key : view_.engine.state_keys()) {
        const int group = optimizer_group_of(view_.optimizer, view_.groups[g].front());
        const std::string name = state_name_in_files(view_.optimizer, group, key);
        const at::Tensor values = flat(view_.groups[g], layout, key);
        if (!name.empty()) state->set(name, add_tensor(document_, values));
      }
      states->set(static_cast<int64_t>(g), state);
    }
    return base_state(states, /*by_parameter=*/false);
  }

  PyNode* base_state(PyNode* states, bool by_parameter) const {
    PyNode* base = document_.dict();
    base->set("state", states);
    PyNode* list = document_.list();
    int64_t number = 0;
    size_t next = 0;
    for (size_t g = 0; g < view_.optimizer.groups.size(); ++g) {
      PyNode* ids = document_.list();
      const size_t members = view_.optimizer.groups[g].members.size();
      if (by_parameter) {
        for (size_t i = 0; i < members; ++i) ids->add(number++);
      } else {
        for (size_t seen = 0; seen < members; ++next) {
          seen += view_.groups[next].size();
          ids->add(number++);
        }
      }
      list->add(group_settings(static_cast<int>(g), ids));
    }
    base->set("param_groups", list);
    return base;
  }

  /// A parameter group as the Python class of the same update keeps it.
  PyNode* group_settings(int index, PyNode* ids) const {
    const auto& hyper = view_.optimizer.groups[index].hyper;
    const auto& native = view_.optimizer.native;
    PyNode* group = document_.dict();
    for (const char* key : {"lr", "eps", "weight_decay", "momentum", "dampening"}) {
      if (hyper.contains(key)) group->set(key, hyper.at(key));
    }
    if (hyper.contains("beta1")) group->set("betas", document_.tuple({hyper.at("beta1"), hyper.at("beta2")}));
    if (hyper.contains("use_muon")) group->set("use_muon", hyper.at("use_muon") != 0);
    if (native.kind == OptimizerKind::kAdam || native.kind == OptimizerKind::kLamb) {
      group->set("bias_correction", native.bias_correction);
    }
    if (native.kind == OptimizerKind::kLamb) {
      group->set("max_coeff", native.max_coeff);
      group->set("min_coeff", native.min_coeff);
      group->set("max_grad_norm", 0.0);
    }
    if (native.kind == OptimizerKind::kSgd) group->set("nesterov", native.nesterov);
    if (of_torch(view_.optimizer)) {
      for (const char* key : {"maximize", "differentiable", "capturable", "amsgrad"}) group->set(key, false);
      for (const char* key : {"foreach", "fused"}) group->set(key, PyValue());
    }
    if (view_.optimizer.state_class == "Adagrad") {
      group->set("lr_decay", 0);
      group->set("initial_accumulator_value", 0);
    }
    group->set("params", ids);
    return group;
  }

 public:
  /// Stage 0: states stand in the model file. Collective.
  PyNode* whole_optimizer_state() const {
    const bool sixteen_bit = view_.config->fp16.enabled || view_.config->bf16.enabled;
    if (!sixteen_bit) return whole_base_state();
    PyNode* made = document_.dict();
    if (view_.config->fp16.enabled) add_scale_history(made);
    made->set("clip_grad", view_.config->gradient_clipping);
    PyNode* masters = document_.list();
    if (view_.optimizer.state_class == "FusedAdam") {
      made->set("optimizer_state_dict", flat_base_state(StateLayoutKind::kUnpadded));
      for (const auto& group : view_.groups) {
        masters->add(add_tensor(document_, flat(group, layout_of(group, StateLayoutKind::kUnpadded), "fp32")));
      }
      made->set("fp32_groups_flat", masters);
      return made;
    }
    made->set("optimizer_state_dict", whole_base_state());
    for (const auto& group : view_.groups) {
      PyNode* values = document_.list();
      for (const int p : group) values->add(add_tensor(document_, full(p, "fp32").view(view_.params.params[p].shape)));
      masters->add(values);
    }
    made->set("fp32_groups", masters);
    return made;
  }

 private:
  void add_scale_history(PyNode* made) const {
    const LossScaler& scaler = view_.engine.loss_scaler();
    made->set("dynamic_loss_scale", scaler.dynamic());
    made->set("cur_scale", scaler.scale());
    made->set("cur_iter", scaler.state().iteration);
    if (!scaler.dynamic()) return;
    made->set("last_overflow_iter", scaler.state().last_overflow);
    made->set("scale_factor", 2.0);
    made->set("scale_window", view_.config->fp16.loss_scale_window);
  }

  /// torch's own format: whole states by parameter. Collective.
  PyNode* whole_base_state() const {
    PyNode* states = document_.dict();
    int64_t number = 0;
    for (size_t g = 0; view_.engine.optimizer_steps() > 0 && g < view_.groups.size(); ++g) {
      for (const int p : view_.groups[g]) {
        PyNode* state = document_.dict();
        state->set("step", step_value());
        for (const auto& key : view_.engine.state_keys()) {
          const std::string name = state_name_in_files(view_.optimizer, static_cast<int>(g), key);
          const at::Tensor values = full(p, key).view(view_.params.params[p].shape);
          if (!name.empty()) state->set(name, add_tensor(document_, values));
        }
        states->set(number++, state);
      }
    }
    return base_state(states, /*by_parameter=*/true);
  }

 public:
  PyNode* native_optimizer_state() const {
    PyNode* state = document_.dict();
    PyNode* list = document_.list();
    for (size_t g = 0; g < view_.optimizer.groups.size(); ++g) {
      PyNode* names = document_.list();
      for (const int p : view_.optimizer.groups[g].members) names->add(view_.params.params[p].name);
      list->add(group_settings(static_cast<int>(g), names));
    }
    state->set("param_groups", list);
    state->set("step", view_.engine.optimizer_steps());
    state->set("has_states", view_.engine.optimizer_steps() > 0);
    state->set("scalars", document_.dict());
    add_scaler(state);
    return state;
  }

  /// One rank's optimizer file. Collective.
  PyNode* rank_optimizer_state() const {
    PyNode* state = document_.dict();
    state->set("zero_stage", number_in_files(view_.config->zero));
    add_scaler(state);
    state->set("ds_version", DEEPSCALE_VERSION);
    if (state_file_form(view_.config->zero) == StateFileForm::kPerParameter) {
      add_per_parameter(state);
    } else {
      add_partitioned(state);
    }
    return state;
  }

 private:
  void add_scaler(PyNode* state) const {
    state->set("loss_scaler", loss_scaler());
    state->set("dynamic_loss_scale", view_.engine.loss_scaler().dynamic());
    state->set("overflow", view_.engine.overflow());
  }

  void add_per_parameter(PyNode* state) const {
    state->set("partition_count", view_.ranks);
    state->set("optimizer_state_dict", flat_base_state(StateLayoutKind::kPerParameter));
    PyNode* masters = document_.list();
    for (const auto& group : view_.groups) {
      masters->add(add_tensor(document_, flat(group, layout_of(group, StateLayoutKind::kPerParameter), "fp32")));
    }
    state->set("fp32_flat_groups", masters);
  }

  void add_partitioned(PyNode* state) const {
    state->set("clip_grad", view_.config->gradient_clipping);
    state->set("base_optimizer_state", flat_base_state(StateLayoutKind::kPartitioned));
    PyNode *masters = document_.list(), *paddings = document_.list(), *alignments = document_.list();
    PyNode *counts = document_.list(), *mappings = document_.list();
    for (const auto& group : view_.groups) {
      const StateLayout layout = layout_of(group, StateLayoutKind::kPartitioned);
      const int64_t kept = layout.partition_numel() - layout.padding(view_.rank);
      masters->add(add_tensor(document_, flat(group, layout, "fp32").narrow(0, 0, kept).clone()));
      paddings->add(layout.padding(view_.rank));
      counts->add(view_.ranks);
      PyNode *zeros = document_.list(), *mapping = document_.ordered_dict();
      for (size_t i = 0; i < group.size(); ++i) {
        zeros->add(0);
        for (const StatePiece& piece : layout.pieces(static_cast<int>(i))) {
          if (piece.rank != view_.rank) continue;
          PyNode* address = document_.make(PyKind::kObject, "deepspeed.utils.tensor_fragment.fragment_address");
          PyNode* range = document_.dict();
          range->set("numel", piece.length);
          range->set("start", piece.start);
          address->state = range;
          mapping->set(view_.params.params[group[i]].name, address);
        }
      }
      alignments->add(zeros);
      mappings->add(mapping);
    }
    state->set("single_partition_of_fp32_groups", masters);
    state->set("group_paddings", paddings);
    state->set("param_alignment_paddings", alignments);
    state->set("partition_count", counts);
    state->set("param_slice_mappings", mappings);
  }

  /// An instance of the class that files keep the loss scale in.
  PyNode* loss_scaler() const {
    const LossScaler& scaler = view_.engine.loss_scaler();
    const std::string module = "deepspeed.runtime.fp16.loss_scaler.";
    PyNode* object = document_.make(PyKind::kObject, module + (scaler.dynamic() ? "DynamicLossScaler" : "LossScaler"));
    PyNode* attributes = document_.dict();
    object->state = attributes;
    attributes->set("cur_scale", scaler.scale());
    attributes->set("dynamic", scaler.dynamic());
    if (!scaler.dynamic()) return object;
    const Fp16Options& fp16 = view_.config->fp16;
    attributes->set("cur_iter", scaler.state().iteration);
    attributes->set("last_overflow_iter", scaler.state().last_overflow);
    attributes->set("scale_factor", 2.0);
    attributes->set("scale_window", fp16.loss_scale_window);
    attributes->set("min_scale", fp16.min_loss_scale);
    attributes->set("delayed_shift", fp16.hysteresis);
    attributes->set("cur_hysteresis", scaler.state().hysteresis_left);
    attributes->set("consecutive_hysteresis", fp16.consecutive_hysteresis);
    attributes->set("raise_error_at_min_scale", true);
    attributes->set("dtype", document_.make(PyKind::kClass, "torch.float16"));
    return object;
  }

  PyDocument& document_;
  const TrainingView& view_;
};

}  // namespace

PyNode* whole_optimizer_state(PyDocument& document, const TrainingView& view) {
  return StateWriter(document, view).whole_optimizer_state();
}

PyNode* native_optimizer_state(PyDocument& document, const TrainingView& view) {
  return StateWriter(document, view).native_optimizer_state();
}

PyNode* rank_optimizer_state(PyDocument& document, const TrainingView& view) {
  return StateWriter(document, view).rank_optimizer_state();
}

}  // namespace deepscale
