#include "engine/module_engine.h"

#include <ATen/Functions.h>
#include <c10/util/ScopeExit.h>
#include <c10/util/Type.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "comm/host_values.h"

namespace deepscale {

// ---------------------------------------------------------------- Impl
bool ModuleEngine::Impl::at_boundary() const {
  if (!config->managed_gradient_accumulation) return in_step_;
  if (forced_boundary) return *forced_boundary;
  return (micro_steps + 1) % *config->gradient_accumulation_steps == 0;
}

at::Tensor ModuleEngine::Impl::backward(const at::Tensor& loss) {
  DS_CHECK(loss.defined(), "backward() got an undefined loss");
  const double divide_by =
      config->managed_gradient_accumulation ? static_cast<double>(*config->gradient_accumulation_steps) : 1.0;
  loss.backward(engine->backward_seed(loss, divide_by));
  engine->finish_backward();
  return loss.detach().div(divide_by);
}

void ModuleEngine::Impl::step() {
  DS_CHECK(!optimizer.groups.empty(),
           "this engine has no optimizer: name one in the configuration's \"optimizer\" to call step()");
  in_step_ = true;
  const auto leave = c10::make_scope_exit([this] { in_step_ = false; });
  step_applied = false;
  if (at_boundary()) {
    step_applied = engine->step(hyper());
    if (!step_applied) {
      ++skipped_steps;
    } else if (schedule != nullptr) {
      schedule->advance();
      apply_rates(schedule->rates());
    }
    ++global_steps;
    global_samples += *config->train_batch_size;
    if (config->steps_per_print && global_steps % *config->steps_per_print == 0 && world.rank() == 0) {
      log.info("step={}, skipped={}, lr={}", global_steps, skipped_steps, optimizer.groups.front().hyper.at("lr"));
    }
  }
  ++micro_steps;
  report_save();
}

std::vector<GroupHyper> ModuleEngine::Impl::hyper() const {
  std::vector<GroupHyper> all;
  for (const auto& group : optimizer.groups) all.push_back(group.hyper);
  return all;
}

void ModuleEngine::Impl::apply_rates(const std::vector<GroupRate>& rates) {
  for (size_t g = 0; g < optimizer.groups.size(); ++g) {
    GroupHyper& hyper = optimizer.groups[g].hyper;
    hyper["lr"] = rates.at(g).lr;
    if (!rates[g].momentum) continue;
    hyper["beta1"] = *rates[g].momentum;
    hyper["beta2"] = LrSchedule::kCycleBeta2;
  }
}

/// Of the first parameter: they are all on one.
at::Device ModuleEngine::Impl::device() const {
  return params.params.empty() ? at::Device(at::kCPU) : params.params.front().tensor.device();
}

void ModuleEngine::Impl::agree(const std::exception_ptr& problem, const std::string& what) const {
  const int64_t own = problem == nullptr ? -1 : world.rank();
  const int64_t rank = all_reduce_values(world, device(), {own}, ReduceOp::kMax, what).front();
  if (problem != nullptr) std::rethrow_exception(problem);
  DS_CHECK_AS(CheckpointError, rank < 0, "{}: rank {} failed, this rank did not; see that rank's error", what, rank);
}

int ModuleEngine::Impl::parameter_index(const std::string& name) const {
  const int index = params.index_of(name);
  if (index >= 0) return index;
  std::vector<std::string> known;
  for (const auto& param : params.params) known.push_back(param.name);
  const std::string_view near = nearest_name(name, known);
  ds_throw<ConfigError>("the model has no parameter \"{}\"{}", name,
                        near.empty() ? std::string() : fmt::format(" (did you mean \"{}\"?)", near));
}

std::string ModuleEngine::Impl::description() const {
  std::string text = engine->description();
  text += fmt::format("\noptimizer {} with {} group(s), schedule {}", config->optimizer.type.value_or("none"),
                      optimizer.groups.size(), config->scheduler.type.value_or("none"));
  if (config->train_batch_size) {
    text += fmt::format("\nbatch {} = {} per rank x {} accumulation steps x {} ranks", *config->train_batch_size,
                        *config->train_micro_batch_size_per_gpu, *config->gradient_accumulation_steps, world.size());
  }
  return text;
}

// ---------------------------------------------------------------- the public class
ModuleEngine::ModuleEngine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ModuleEngine::~ModuleEngine() = default;

at::Tensor ModuleEngine::backward(const at::Tensor& loss) {
  return impl_->backward(loss);
}
void ModuleEngine::step() {
  impl_->step();
}
bool ModuleEngine::is_gradient_accumulation_boundary() const {
  return impl_->at_boundary();
}
void ModuleEngine::set_gradient_accumulation_boundary(bool is_boundary) {
  impl_->forced_boundary = is_boundary;
}

void ModuleEngine::zero_grad() {
  impl_->engine->zero_grad();
  for (const auto& param : impl_->params.params) param.tensor.mutable_grad() = at::Tensor();
}

void ModuleEngine::train(bool on) {
  impl_->model->train(on);
}

int64_t ModuleEngine::global_steps() const {
  return impl_->global_steps;
}
int64_t ModuleEngine::global_samples() const {
  return impl_->global_samples;
}
int64_t ModuleEngine::micro_steps() const {
  return impl_->micro_steps;
}
int64_t ModuleEngine::skipped_steps() const {
  return impl_->skipped_steps;
}
bool ModuleEngine::was_step_applied() const {
  return impl_->step_applied;
}

std::vector<double> ModuleEngine::learning_rates() const {
  std::vector<double> rates;
  for (const auto& group : impl_->optimizer.groups) rates.push_back(group.hyper.at("lr"));
  return rates;
}

void ModuleEngine::set_learning_rates(const std::vector<double>& rates) {
  auto& groups = impl_->optimizer.groups;
  DS_CHECK_AS(ConfigError, rates.size() == groups.size(),
              "set_learning_rates() got {} rates for {} parameter groups: give one per group", rates.size(),
              groups.size());
  for (size_t g = 0; g < groups.size(); ++g) groups[g].hyper["lr"] = rates[g];
}

double ModuleEngine::grad_norm() const {
  return impl_->engine->grad_norm();
}
double ModuleEngine::loss_scale() const {
  return impl_->engine->loss_scaler().scale();
}
int64_t ModuleEngine::train_batch_size() const {
  return impl_->config->train_batch_size.value();
}
int64_t ModuleEngine::micro_batch_size() const {
  return impl_->config->train_micro_batch_size_per_gpu.value();
}
int64_t ModuleEngine::gradient_accumulation_steps() const {
  return impl_->config->gradient_accumulation_steps.value();
}
const Config& ModuleEngine::config() const {
  return impl_->config;
}
const Communicator& ModuleEngine::communicator() const {
  return impl_->world;
}
torch::nn::Module& ModuleEngine::module() const {
  return *impl_->model;
}
std::string ModuleEngine::description() const {
  return impl_->description();
}

std::map<std::string, int64_t> ModuleEngine::memory_bytes() const {
  const Engine::Memory memory = impl_->engine->memory_bytes();
  return {{"parameters", memory.parameters},
          {"gradients", memory.gradients},
          {"master", memory.master},
          {"optimizer", memory.optimizer},
          {"buckets", memory.buckets}};
}

at::Tensor ModuleEngine::full_parameter(const std::string& name) {
  return impl_->engine->read_full(impl_->parameter_index(name), "fp32").value();
}

at::Tensor ModuleEngine::full_gradient(const std::string& name) {
  return impl_->engine->read_full(impl_->parameter_index(name), "grad").value_or(at::Tensor());
}

void ModuleEngine::set_full_parameter(const std::string& name, const at::Tensor& value) {
  const int index = impl_->parameter_index(name);
  const auto& shape = impl_->params.params[index].shape;
  DS_CHECK_AS(ConfigError, value.sizes() == at::IntArrayRef(shape),
              "parameter {} has shape [{}], the value to store [{}]", name, fmt::join(shape, ", "),
              fmt::join(value.sizes(), ", "));
  impl_->engine->write_full(index, "fp32", value.to(at::kFloat));
}

at::Tensor ModuleEngine::prepare_input(const at::Tensor& input) const {
  const bool cast = impl_->config->fp16.enabled && impl_->config->fp16.auto_cast;
  return cast && input.defined() && at::isFloatingType(input.scalar_type()) ? input.to(at::kHalf) : input;
}

void ModuleEngine::wrong_module_type(const torch::nn::Module& module, const std::string& wanted) {
  ds_throw<ConfigError>("the engine's module is a {}, not a {}: name the type of the module given to initialize()",
                        module.name(), c10::demangle(wanted.c_str()));
}

}  // namespace deepscale
