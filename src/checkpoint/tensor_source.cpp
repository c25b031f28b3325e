#include "checkpoint/tensor_source.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "base/checked_math.h"
#include "base/error.h"
#include "base/text.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/verified_file.h"
#include "platform/files.h"

namespace deepscale {
namespace {

constexpr char kCommon[] = "common.pt";

bool is_digit(char letter) {
  return letter >= '0' && letter <= '9';
}

class NativeSource : public TensorSource {
 public:
  explicit NativeSource(const std::string& folder) : TensorSource(CheckpointKind::kNative), stored_(folder) {
    for (const ManifestTensor& tensor : stored_.manifest().tensors) {
      add(tensor.name, tensor.dtype, tensor.shape, static_cast<int64_t>(tensor.slices.size()));
    }
    sort_tensors();
    stored_.check_file(kCommon);
    take_aliases(TorchArchive::open(folder + "/" + kCommon).root());
  }

  void read(const std::vector<SourceRange>& ranges) override {
    std::vector<CheckpointTensors::Request> requests;
    for (const SourceRange& range : ranges) {
      requests.push_back({tensors_[range.tensor].name, range.offset, range.numel, range.destination});
    }
    stored_.read(requests);
  }

 private:
  CheckpointTensors stored_;
};

class SafetensorsSource : public TensorSource {
 public:
  explicit SafetensorsSource(const std::string& path) : TensorSource(CheckpointKind::kSafetensors) {
    if (is_directory(path)) {
      for (const std::string& name : list_directory(path)) {
        if (name.ends_with(".safetensors") && name.front() != '.')
          files_.push_back(SafetensorsFile::open(path + "/" + name));
      }
    } else {
      files_.push_back(SafetensorsFile::open(path));
    }
    std::set<std::string> names;
    for (size_t f = 0; f < files_.size(); ++f) {
      for (const SafetensorsEntry& entry : files_[f].header().entries) {
        DS_CHECK_AS(CheckpointError, names.insert(entry.name).second, "{}: tensor {} is in two of its files", path,
                    printable(entry.name));
        add(entry.name, entry.dtype, entry.shape);
        file_of_[entry.name] = f;
      }
    }
    sort_tensors();
    for (const SafetensorsFile& file : files_) {
      for (const auto& [alias, name] : file.header().metadata) {
        if (names.contains(name) && !names.contains(alias)) aliases_[alias] = name;
      }
    }
  }

  void read(const std::vector<SourceRange>& ranges) override {
    for (const SourceRange& range : ranges) {
      const SourceTensor& tensor = tensors_[range.tensor];
      SafetensorsFile& file = files_[file_of_.at(tensor.name)];
      const int64_t element = size_of(tensor.dtype);
      file.read(*file.find(tensor.name), range.offset * element, range.numel * element, range.destination);
    }
  }

 private:
  std::vector<SafetensorsFile> files_;
  std::map<std::string, size_t> file_of_;
};

}  // namespace

bool natural_less(std::string_view a, std::string_view b) {
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (!is_digit(a[i]) || !is_digit(b[j])) {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
      continue;
    }
    const auto number = [](std::string_view text, size_t& place) {
      const size_t begin = place;
      while (place < text.size() && is_digit(text[place])) ++place;
      const std::string_view digits = text.substr(begin, place - begin);
      return digits.substr(std::min(digits.find_first_not_of('0'), digits.size()));
    };
    const std::string_view left = number(a, i), right = number(b, j);
    if (left.size() != right.size()) return left.size() < right.size();
    if (left != right) return left < right;
  }
  if (i < a.size() || j < b.size()) return i == a.size() && j < b.size();
  return a < b;  // 01 and 1
}

void TensorSource::add(std::string name, DType dtype, std::vector<int64_t> shape, int64_t pieces) {
  std::optional<int64_t> numel = size_of(dtype);
  for (const int64_t size : shape) numel = numel && size >= 0 ? checked_product(*numel, size) : std::nullopt;
  DS_CHECK_AS(CheckpointError, numel.has_value(), "tensor {} has an impossible shape", printable(name));
  std::string weight;
  if (kind_ == CheckpointKind::kSafetensors) {
    weight = name;
  } else {
    for (const std::string_view prefix : {"fp32/", "module/"}) {
      if (name.starts_with(prefix)) weight = name.substr(prefix.size());
    }
  }
  tensors_.push_back({std::move(name), std::move(weight), dtype, std::move(shape), pieces});
}

std::vector<int> TensorSource::sort_tensors() {
  std::vector<int> order(tensors_.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [this](int a, int b) { return natural_less(tensors_[a].name, tensors_[b].name); });
  std::vector<SourceTensor> sorted;
  for (const int place : order) sorted.push_back(std::move(tensors_[place]));
  tensors_ = std::move(sorted);
  return order;
}

void TensorSource::take_aliases(const PyValue& model_file) {
  const PyValue* const shared = model_file.find("shared_params");
  if (shared == nullptr || !shared->is_dict()) return;
  for (const auto& [alias, name] : shared->as_entries("shared_params"))
    aliases_[alias] = name->as_string("shared_params");
}

std::unique_ptr<TensorSource> TensorSource::open(const std::string& path) {
  switch (checkpoint_kind(path)) {
    case CheckpointKind::kNative:
      return std::make_unique<NativeSource>(path);
    case CheckpointKind::kDeepSpeed:
      return open_deepspeed_source(path);
    case CheckpointKind::kUniversal:
      return open_universal_source(path);
    case CheckpointKind::kSafetensors:
      return std::make_unique<SafetensorsSource>(path);
    case CheckpointKind::kNone:
      break;
  }
  ds_throw<CheckpointError>("{} holds no checkpoint", path);
}

}  // namespace deepscale
