// Trains a small network to tell two spirals apart. Parameters, gradients and optimizer states are sharded over all
// ranks that the launcher starts:
//
//   deepspeed --num_gpus 2 --no_python build/train_mlp ds_config.json [checkpoint directory]
#include <ATen/Functions.h>
#include <deepscale/deepscale.h>
#include <torch/nn/modules/linear.h>

#include <cstdio>
#include <numbers>
#include <string>
#include <string_view>
#include <vector>

namespace {

struct LayerImpl : torch::nn::Module {
  LayerImpl(int64_t in, int64_t out) : linear(register_module("linear", torch::nn::Linear(in, out))) {}
  at::Tensor forward(const at::Tensor& x) { return at::tanh(linear->forward(x)); }
  torch::nn::Linear linear;
};

/// Layers are units: each is gathered when its forward begins and released when it ends.
struct MlpImpl : torch::nn::Module {
  MlpImpl()
      : first(register_module("first", std::make_shared<LayerImpl>(2, 64))),
        second(register_module("second", std::make_shared<LayerImpl>(64, 64))),
        output(register_module("output", torch::nn::Linear(64, 1))) {}

  /// Mean loss of the points [batch, 2] with labels 0 and 1 [batch].
  at::Tensor forward(const at::Tensor& points, const at::Tensor& labels) {
    const at::Tensor logits = output->forward(second(first(points))).squeeze(1);
    return at::binary_cross_entropy_with_logits(logits, labels);
  }

  std::vector<deepscale::AnyUnit> units() const { return {first, second}; }

  deepscale::Unit<LayerImpl> first, second;
  torch::nn::Linear output;
};

/// Points on two spirals, and which spiral each is on.
std::pair<at::Tensor, at::Tensor> spirals(int64_t count) {
  const at::Tensor labels = at::randint(0, 2, {count}).to(at::kFloat);
  const at::Tensor radius = at::rand({count});
  const at::Tensor angle = (radius * 3.0 + labels) * std::numbers::pi;
  return {at::stack({radius * at::cos(angle), radius * at::sin(angle)}, 1) * 2.0, labels};
}

int run(const std::string& config, const std::string& directory) {
  const deepscale::Communicator world = deepscale::world_from_environment();
  at::manual_seed(1);
  auto model = std::make_shared<MlpImpl>();
  deepscale::InitializeOptions options{.communicator = world, .units = model->units()};
  options.groups.push_back({[](const std::string& name) { return name.ends_with(".bias"); }, {{"weight_decay", 0.0}}});
  const auto engine = deepscale::initialize(model, config, options);
  if (world.rank() == 0) std::printf("%s\n", engine->description().c_str());

  at::manual_seed(100 + world.rank());  // every rank draws points of its own
  double first_loss = 0, loss = 0;
  for (int step = 0; step < 300; ++step) {
    for (int64_t micro = 0; micro < engine->gradient_accumulation_steps(); ++micro) {
      const auto [points, labels] = spirals(engine->micro_batch_size());
      const at::Tensor batch_loss = engine->forward<MlpImpl>(points, labels);
      engine->backward(batch_loss);
      engine->step();
      loss = step == 0 ? batch_loss.item<double>() : 0.95 * loss + 0.05 * batch_loss.item<double>();
    }
    if (step == 0) first_loss = loss;
    if (world.rank() == 0 && step % 50 == 49) std::printf("step %d: loss %.4f\n", step + 1, loss);
  }
  if (!directory.empty()) {
    engine->save_checkpoint(directory);
    if (!engine->load_checkpoint(directory)) return 1;
  }
  return loss < 0.5 * first_loss ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]).substr(0, 12) != "--local_rank")
      arguments.emplace_back(argv[i]);  // the launcher adds it
  }
  if (arguments.empty()) {
    std::fprintf(stderr, "usage: train_mlp ds_config.json [checkpoint directory]\n");
    return 2;
  }
  try {
    return run(arguments[0], arguments.size() > 1 ? arguments[1] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train_mlp: %s\n", error.what());
    return 2;
  }
}
