#include "engine/optimizer_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "base/error.h"
#include "engine/param_reader.h"

namespace deepscale {
namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

void read_betas(ParamReader& params, GroupHyper& hyper) {
  const auto betas = params.pair("betas", {0.9, 0.999});
  hyper["beta1"] = betas.first;
  hyper["beta2"] = betas.second;
}

/// Settings that only tell other implementations how to compute the same thing.
void accept(ParamReader& params, std::initializer_list<const char*> keys) {
  for (const char* key : keys) (void)params.flag(key, false);
}

void refuse(ParamReader& params, const char* key, const char* remedy) {
  DS_CHECK_AS(UnsupportedError, !params.flag(key, false), "optimizer.params.{} is not supported from C++: {}", key,
              remedy);
}

void read_adam(ParamReader& params, bool always_decoupled, ConfiguredOptimizer& made, GroupHyper& hyper) {
  made.native.kind = OptimizerKind::kAdam;
  made.native.decoupled = params.flag("adam_w_mode", true) || always_decoupled;
  made.native.bias_correction = params.flag("bias_correction", true);
  const bool by_torch = params.flag("torch_adam", false);
  made.native.states_as_master = !params.flag("fp32_optimizer_states", true);
  accept(params, {"foreach", "fused", "set_grad_none"});
  refuse(params, "amsgrad", "set it to false");
  refuse(params, "maximize", "negate the loss");
  hyper["lr"] = params.number("lr", 1e-3);
  read_betas(params, hyper);
  hyper["eps"] = params.number("eps", 1e-8);
  hyper["weight_decay"] = params.number("weight_decay", by_torch && made.native.decoupled ? 0.01 : 0.0);
  made.has_betas = true;
  made.state_class = !by_torch ? "FusedAdam" : made.native.decoupled ? "AdamW" : "Adam";
}

void read_lamb(ParamReader& params, ConfiguredOptimizer& made, GroupHyper& hyper) {
  made.native.kind = OptimizerKind::kLamb;
  made.native.bias_correction = params.flag("bias_correction", true);
  made.native.eps_inside_sqrt = params.flag("eps_inside_sqrt", false);
  made.native.max_coeff = params.number("max_coeff", 10.0);
  made.native.min_coeff = params.number("min_coeff", 0.01);
  refuse(params, "amsgrad", "set it to false");
  hyper["lr"] = params.number("lr", 1e-3);
  read_betas(params, hyper);
  hyper["eps"] = params.number("eps", 1e-8);
  hyper["weight_decay"] = params.number("weight_decay", 0.0);
  made.has_betas = true;
  made.state_class = "FusedLamb";
}

void read_lion(ParamReader& params, ConfiguredOptimizer& made, GroupHyper& hyper) {
  made.native.kind = OptimizerKind::kLion;
  accept(params, {"fp32_optimizer_states", "set_grad_none"});
  hyper["lr"] = params.number("lr", 1e-3);
  read_betas(params, hyper);
  hyper["weight_decay"] = params.number("weight_decay", 0.0);
  made.has_betas = true;
  made.state_class = "FusedLion";
}

void read_adagrad(ParamReader& params, ConfiguredOptimizer& made, GroupHyper& hyper) {
  made.native.kind = OptimizerKind::kAdagrad;
  accept(params, {"fp32_optimizer_states", "foreach", "fused"});
  DS_CHECK_AS(UnsupportedError, params.number("lr_decay", 0) == 0 && params.number("initial_accumulator_value", 0) == 0,
              "optimizer.params.lr_decay and initial_accumulator_value are not supported from C++: set them to 0");
  hyper["lr"] = params.number("lr", 1e-2);
  hyper["eps"] = params.number("eps", 1e-10);
  hyper["weight_decay"] = params.number("weight_decay", 0.0);
  made.state_class = "Adagrad";
}

void read_sgd(ParamReader& params, ConfiguredOptimizer& made, GroupHyper& hyper) {
  made.native.kind = OptimizerKind::kSgd;
  made.native.nesterov = params.flag("nesterov", false);
  accept(params, {"foreach", "fused"});
  refuse(params, "maximize", "negate the loss");
  hyper["lr"] = params.number("lr", 1e-3);
  hyper["momentum"] = params.number("momentum", 0.0);
  hyper["dampening"] = params.number("dampening", 0.0);
  hyper["weight_decay"] = params.number("weight_decay", 0.0);
  DS_CHECK_AS(ConfigError, !made.native.nesterov || (hyper["momentum"] > 0 && hyper["dampening"] == 0),
              "optimizer.params.nesterov needs a positive momentum and no dampening");
  made.native.momentum = hyper["momentum"] != 0;
  made.state_class = "SGD";
}

/// Muon for matrices, Adam for the rest: two sets of hyper-parameters.
void read_muon(ParamReader& params, ConfiguredOptimizer& made, GroupHyper& matrices, GroupHyper& rest) {
  made.native.kind = OptimizerKind::kMuon;
  const auto lr = params.optional_number("lr");
  const auto decay = params.number("weight_decay", 0.0);
  matrices = {{"use_muon", 1.0}, {"momentum", params.number("momentum", 0.95)}, {"weight_decay", decay}};
  matrices["lr"] = params.number("muon_lr", lr.value_or(0.02));
  rest = {{"use_muon", 0.0}, {"weight_decay", decay}, {"eps", params.number("eps", 1e-8)}};
  rest["lr"] = params.number("adam_lr", lr.value_or(1e-3));
  read_betas(params, rest);
  (void)params.text("ns_method", "standard");
  refuse(params, "per_head_muon", "set it to false");
  made.state_class = "MuonWithAuxAdam";
}

void read_params(const OptimizerOptions& section, const std::string& type, ConfiguredOptimizer& made, GroupHyper& hyper,
                 GroupHyper& rest) {
  ParamReader params("optimizer.params", section.params.text);
  DS_CHECK_AS(
      ConfigError, !params.optional_number("max_grad_norm"),
      "optimizer.params.max_grad_norm is not supported: use the key \"gradient_clipping\" beside \"optimizer\"");
  if (type == "adam" || type == "adamw") {
    read_adam(params, type == "adamw", made, hyper);
  } else if (type == "lamb") {
    read_lamb(params, made, hyper);
  } else if (type == "lion") {
    read_lion(params, made, hyper);
  } else if (type == "adagrad") {
    read_adagrad(params, made, hyper);
  } else if (type == "sgd") {
    read_sgd(params, made, hyper);
  } else if (type == "muon") {
    read_muon(params, made, hyper, rest);
  } else {
    ds_throw<UnsupportedError>(
        "optimizer.type \"{}\" exists only in Python; from C++ use Adam, AdamW, Lamb, Lion, Adagrad, SGD or Muon",
        *section.type);
  }
  params.finish();
}

bool is_matrix(const GroupCandidate& candidate) {
  const std::string name = lower(candidate.name);
  return candidate.dims >= 2 && name.find("embed") == std::string::npos && name.find("lm_head") == std::string::npos;
}

void apply_settings(const GroupHyper& settings, size_t request, GroupHyper& hyper) {
  for (const auto& [key, value] : settings) {
    std::set<std::string> known;
    for (const auto& [name, unused] : hyper) known.insert(name);
    DS_CHECK_AS(ConfigError, known.contains(key),
                "parameter group {} sets \"{}\", which the configured optimizer does not have: use one of {}", request,
                key, fmt::join(known, ", "));
    hyper[key] = value;
  }
}

}  // namespace

ConfiguredOptimizer configure_optimizer(const Options& options, const std::vector<GroupCandidate>& candidates,
                                        const std::vector<GroupRequest>& requests) {
  ConfiguredOptimizer made;
  if (!options.optimizer.type) return made;
  const std::string type = lower(*options.optimizer.type);
  GroupHyper hyper, rest;
  read_params(options.optimizer, type, made, hyper, rest);
  if (type == "adagrad" && options.zero.optimizer_device() != OffloadDevice::kNone) {
    made.state_class = "DeepSpeedCPUAdagrad";
  }
  DS_CHECK_AS(ConfigError, type != "lamb" || !options.fp16.enabled || options.fp16.loss_scale == 0,
              "optimizer.type Lamb with fp16 needs dynamic loss scaling: set fp16.loss_scale to 0");

  const bool splits = made.native.kind == OptimizerKind::kMuon;
  // Two slots per request when matrices and the rest are apart.
  std::vector<OptimizerGroup> slots((requests.size() + 1) * 2);
  for (size_t c = 0; c < candidates.size(); ++c) {
    const auto taker = std::find_if(requests.begin(), requests.end(),
                                    [&](const GroupRequest& request) { return request.takes(candidates[c].name); });
    const size_t side = splits && !is_matrix(candidates[c]) ? 1 : 0;
    slots[static_cast<size_t>(taker - requests.begin()) * 2 + side].members.push_back(static_cast<int>(c));
  }
  for (size_t s = 0; s < slots.size(); ++s) {
    if (slots[s].members.empty()) continue;
    slots[s].hyper = s % 2 == 0 ? hyper : rest;
    if (s / 2 < requests.size()) apply_settings(requests[s / 2].settings, s / 2, slots[s].hyper);
    made.native.momentum = made.native.momentum || hyper_value(slots[s].hyper, "momentum", 0.0) != 0;
    made.groups.push_back(std::move(slots[s]));
  }
  DS_CHECK_AS(ConfigError, !made.groups.empty(),
              "the configuration names an optimizer, but the model has no trainable parameter: check requires_grad");
  return made;
}

}  // namespace deepscale
