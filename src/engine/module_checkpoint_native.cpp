#include "engine/module_checkpoint_native.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <mutex>

#include "base/error.h"
#include "base/shape.h"
#include "comm/host_values.h"
#include "engine/module_checkpoint.h"

namespace deepscale {
namespace {

std::shared_ptr<const void> bytes_of(const at::Tensor& value) {
  const at::Tensor plain = value.detach().to(at::kCPU).contiguous();
  return {plain.const_data_ptr(), [plain](const void*) {}};
}

/// Collects what one rank writes.
class SliceCollector {
 public:
  SliceCollector(Engine& engine, const ConfiguredOptimizer& optimizer, const ModelParams& params,
                 const Communicator& world, at::Device device)
      : engine_(engine), optimizer_(optimizer), params_(params), rank_(world.rank()), ranks_(world.size()) {
    const auto count = static_cast<int64_t>(params.params.size());
    std::vector<int64_t> ranges(2 * count * ranks_, 0);
    for (int64_t p = 0; p < count; ++p) {
      if (optimizer_group_of(optimizer, static_cast<int>(p)) < 0) continue;
      const auto range = engine.fragment_of(static_cast<int>(p));
      ranges[2 * (rank_ * count + p)] = range.offset;
      ranges[2 * (rank_ * count + p) + 1] = range.length;
    }
    ranges_ = all_reduce_values(world, device, std::move(ranges), ReduceOp::kSum, "fragments for a checkpoint");
  }

  /// Collective.
  std::vector<SavedSlice> collect() {
    const bool in_files = engine_.file_use().optimizer.has_value();
    for (int p = 0; p < static_cast<int>(params_.params.size()); ++p) {
      const int group = optimizer_group_of(optimizer_, p);
      if (group < 0) {
        add_untrained(p);
        continue;
      }
      add_trained(p, "fp32", "fp32", in_files);
      if (engine_.optimizer_steps() == 0) continue;
      for (const std::string& key : engine_.state_keys()) {
        const std::string name = state_name_in_files(optimizer_, group, key);
        if (!name.empty()) add_trained(p, key, name, in_files);
      }
    }
    for (const auto& entry : params_.entries) {
      if (entry.param >= 0 || rank_ != 0) continue;
      const at::Tensor value = entry.buffer.detach().to(at::kCPU).clone();
      add("module/" + entry.name, value, value.sizes().vec(), 0);
    }
    return std::move(slices_);
  }

 private:
  [[nodiscard]] Engine::PieceRange range_of(int rank, int param) const {
    const size_t place = 2 * (rank * params_.params.size() + param);
    return {ranges_[place], ranges_[place + 1]};
  }

  /// Ranks that hold the same fragment write a part of it each.
  [[nodiscard]] Engine::PieceRange share(int param) const {
    const auto mine = range_of(rank_, param);
    int64_t owners = 0, place = 0;
    for (int rank = 0; rank < ranks_; ++rank) {
      const auto held = range_of(rank, param);
      if (held.offset != mine.offset || held.length != mine.length) continue;
      if (rank < rank_) ++place;
      ++owners;
    }
    const int64_t begin = mine.length * place / owners, end = mine.length * (place + 1) / owners;
    return {mine.offset + begin, end - begin};
  }

  void add_trained(int param, const std::string& key, const std::string& name, bool in_files) {
    const auto part = share(param);
    if (part.length == 0) return;
    const int64_t begin = part.offset - range_of(rank_, param).offset;
    const auto load = [this_engine = &engine_, param, key, begin, length = part.length] {
      const auto local = this_engine->read_local(param, key);
      DS_CHECK(local.has_value(), "parameter {} has no {} to be saved", param, key);
      return local->reshape({-1}).narrow(0, begin, length);
    };
    const auto& stored = params_.params[param];
    SavedSlice slice{name + "/" + stored.name, DType::kFloat32, stored.shape, part.offset, part.length, {}, !in_files};
    if (in_files) {
      slice.data = [load] { return bytes_of(load().to(at::kFloat)); };
    } else {
      const at::Tensor values = load();
      slice.dtype = to_dtype(values.scalar_type());
      slice.data = [data = bytes_of(values)] { return data; };
    }
    slices_.push_back(std::move(slice));
  }

  /// Collective: a weight without master copy, of which each rank writes a part.
  void add_untrained(int param) {
    const auto& stored = params_.params[param];
    const auto whole = engine_.read_full(param, "fp32");
    DS_CHECK(whole.has_value(), "parameter {} has no value to be saved", stored.name);
    const int64_t numel = numel_of(stored.shape);
    const int64_t begin = numel * rank_ / ranks_, end = numel * (rank_ + 1) / ranks_;
    if (begin == end) return;
    const at::Tensor part =
        whole->reshape({-1}).narrow(0, begin, end - begin).to(at::kCPU, stored.tensor.scalar_type()).clone();
    add("module/" + stored.name, part, stored.shape, begin);
  }

  void add(const std::string& name, const at::Tensor& values, const std::vector<int64_t>& shape, int64_t offset) {
    slices_.push_back({name, to_dtype(values.scalar_type()), shape, offset, values.numel(),
                       [data = bytes_of(values)] { return data; }, true});
  }

  Engine& engine_;
  const ConfiguredOptimizer& optimizer_;
  const ModelParams& params_;
  int rank_, ranks_;
  std::vector<int64_t> ranges_;  // by rank, by parameter: offset, length
  std::vector<SavedSlice> slices_;
};

}  // namespace

std::string native_tensor_file(int rank) {
  return fmt::format("rank_{:05d}.safetensors", rank);
}

std::string native_rank_file(int rank) {
  return fmt::format("rank_{:05d}.pt", rank);
}

std::vector<SavedSlice> native_slices(Engine& engine, const ConfiguredOptimizer& optimizer, const ModelParams& params,
                                      const Communicator& world, at::Device device) {
  return SliceCollector(engine, optimizer, params, world, device).collect();
}

at::Tensor random_state() {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

void restore_random_state(const at::Tensor& state) {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
}

PyNode* describe_random_state(PyDocument& document) {
  PyNode* random = document.dict();
  random->set("torch", add_tensor(document, random_state()));
  PyNode* state = document.dict();
  state->set("random", random);
  return state;
}

std::optional<at::Tensor> read_random_state(const std::string& folder, int rank) {
  const std::string path = folder + "/" + native_rank_file(rank);
  const auto file = TorchFile::open(path);
  const PyValue* const random = file.root().find("random");
  const PyValue* const stored = random == nullptr ? nullptr : random->find("torch");
  if (stored == nullptr || !stored->is(PyKind::kTensor)) return std::nullopt;
  at::Tensor state = file.read(stored->node()->tensor);
  const at::Tensor own = random_state();
  DS_CHECK_AS(CheckpointError, state.scalar_type() == own.scalar_type() && state.numel() == own.numel(),
              "{}: the state of the random numbers has {} bytes, expected {}", path, state.numel(), own.numel());
  return state;
}

NativeTensors::NativeTensors(const std::string& folder, int rank, int ranks) : tensors_(folder, at::get_num_threads()) {
  tensors_.check_file(kNativeCommon);
  common_ = std::make_shared<const TorchFile>(TorchFile::open(folder + "/" + kNativeCommon));
  if (common_->root().at("dp_world_size").as_int("dp_world_size") != ranks) return;
  tensors_.check_file(native_rank_file(rank));
  random_ = read_random_state(folder, rank);
}

const ManifestTensor* NativeTensors::weight(const std::string& name) const {
  const PyValue* const shared = common_->root().find("shared_params");
  const PyValue* const source = shared == nullptr || !shared->is_dict() ? nullptr : shared->find(name);
  const std::string stored = source == nullptr ? name : source->as_string("shared_params");
  const ManifestTensor* const master = tensors_.find("fp32/" + stored);
  return master != nullptr ? master : tensors_.find("module/" + stored);
}

std::map<std::string, std::vector<std::string>> NativeTensors::states() const {
  std::map<std::string, std::vector<std::string>> found;
  for (const ManifestTensor& tensor : tensors_.manifest().tensors) {
    const size_t slash = tensor.name.find('/');
    const std::string kind = tensor.name.substr(0, slash);
    if (slash == std::string::npos || kind == "fp32" || kind == "module") continue;
    found[tensor.name.substr(slash + 1)].push_back(kind);
  }
  return found;
}

std::vector<std::string> NativeTensors::weights() const {
  std::vector<std::string> names;
  for (const ManifestTensor& tensor : tensors_.manifest().tensors) {
    for (const std::string_view prefix : {"fp32/", "module/"}) {
      if (tensor.name.starts_with(prefix)) names.push_back(tensor.name.substr(prefix.size()));
    }
  }
  return names;
}

at::Tensor NativeTensors::read(const ManifestTensor& tensor, int64_t offset, int64_t length) const {
  const at::Tensor values = at::empty({length}, at::TensorOptions(to_scalar_type(tensor.dtype)));
  tensors_.read({{tensor.name, offset, length, values.data_ptr()}});
  return values;
}

at::Tensor NativeTensors::read_whole(const ManifestTensor& tensor) const {
  return read(tensor, 0, tensor.numel()).view(tensor.shape);
}

}  // namespace deepscale
