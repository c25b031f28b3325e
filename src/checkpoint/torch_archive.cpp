#include "checkpoint/torch_archive.h"

#include <cstring>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/file_replace.h"
#include "checkpoint/pickle.h"
#include "platform/files.h"

namespace deepscale {
namespace {

/// Tensors that a value can reach, each node once.
std::vector<const PyTensor*> tensors_below(const PyValue& root) {
  std::vector<const PyTensor*> found;
  std::vector<const PyNode*> open;
  std::unordered_set<const PyNode*> seen;
  const auto visit = [&](const PyValue& value) {
    if (value.node() != nullptr && seen.insert(value.node()).second) open.push_back(value.node());
  };
  visit(root);
  while (!open.empty()) {
    const PyNode* node = open.back();
    open.pop_back();
    if (node->kind == PyKind::kTensor) found.push_back(&node->tensor);
    for (const PyValue& item : node->items) visit(item);
    visit(node->state);
  }
  return found;
}

}  // namespace

void TorchArchive::find_tensors() {
  for (const PyTensor* tensor : tensors_below(document_.root)) {
    const std::string name = "data/" + tensor->record;
    const ZipFile::Member* const member = zip_.find(name);
    DS_CHECK_AS(CheckpointError, member != nullptr, "it has no part \"{}\"", printable(name));
    const int64_t needed = tensor->storage_numel * size_of(tensor->dtype);
    DS_CHECK_AS(CheckpointError, member->bytes >= needed, "its part \"{}\" has {} bytes, {} are needed",
                printable(name), member->bytes, needed);
    begins_[tensor->record] = member->begin;
  }
}

TorchArchive TorchArchive::open(const std::string& path) {
  DS_CHECK_AS(CheckpointError, file_size(path).has_value(),
              "checkpoint file {} does not exist: the checkpoint is not complete, or the directory or tag is wrong",
              path);
  try {
    TorchArchive archive(path, ZipFile::open(path));
    if (archive.zip_.find("byteorder") != nullptr) {
      DS_CHECK_AS(CheckpointError, archive.zip_.read("byteorder") == "little", "it is of a big-endian machine");
    }
    archive.document_ = read_pickle(archive.zip_.read("data.pkl"));
    archive.find_tensors();
    return archive;
  } catch (const CheckpointError& error) {
    ds_throw<CheckpointError>(
        "checkpoint file {} is cut off, damaged, or not a file of torch.save ({}): restore it, or load another tag",
        path, error.what());
  }
}

void TorchArchive::read_storage(const PyTensor& tensor, int64_t begin, int64_t length, void* destination) {
  DS_CHECK_AS(CheckpointError, begin >= 0 && length >= 0 && begin <= tensor.storage_numel - length,
              "checkpoint file {}: {} elements from {} on of {} are asked for", path_, length, begin,
              tensor.storage_numel);
  const int64_t element = size_of(tensor.dtype);
  try {
    zip_.read_at(begins_.at(tensor.record) + begin * element, destination, length * element);
  } catch (const CheckpointError& error) {
    ds_throw<CheckpointError>("checkpoint file {}: {}", path_, error.what());
  }
}

void TorchArchive::read(const PyTensor& tensor, int64_t begin, int64_t length, void* destination) {
  DS_CHECK_AS(CheckpointError, begin >= 0 && length >= 0 && begin <= tensor.numel() - length,
              "checkpoint file {}: {} elements from {} on of a tensor of {} are asked for", path_, length, begin,
              tensor.numel());
  if (tensor.is_contiguous()) return read_storage(tensor, tensor.offset + begin, length, destination);
  const int64_t element = size_of(tensor.dtype);
  std::vector<char> storage(static_cast<size_t>(tensor.storage_numel * element));
  read_storage(tensor, 0, tensor.storage_numel, storage.data());
  for (int64_t i = 0; i < length; ++i) {
    int64_t rest = begin + i, place = tensor.offset;
    for (size_t d = tensor.sizes.size(); d-- > 0; rest /= tensor.sizes[d]) {
      place += rest % tensor.sizes[d] * tensor.strides[d];
    }
    std::memcpy(static_cast<char*>(destination) + i * element, storage.data() + place * element,
                static_cast<size_t>(element));
  }
}

std::vector<std::string> TorchArchive::damaged_parts(const std::function<void(int64_t bytes)>& read) {
  try {
    return zip_.damaged_members(read);
  } catch (const CheckpointError& error) {
    ds_throw<CheckpointError>("checkpoint file {}: {}", path_, error.what());
  }
}

std::vector<ZipMember> torch_file_members(std::string pickle, std::vector<std::vector<BytePart>> storages) {
  std::vector<ZipMember> members;
  members.push_back({"data.pkl", {part_of(std::move(pickle))}});
  members.push_back({"byteorder", {part_of(std::string("little"))}});
  for (size_t i = 0; i < storages.size(); ++i) members.push_back({"data/" + std::to_string(i), std::move(storages[i])});
  members.push_back({"version", {part_of(std::string("3\n"))}});  // of the layout; torch.load refuses files without it
  return members;
}

std::vector<ZipMember> torch_file_members(const PyDocument& document) {
  PickledTensors pickled = write_pickle(document);
  std::vector<std::vector<BytePart>> storages;
  for (const PickledStorage& storage : pickled.storages) {
    storages.push_back({{storage.bytes, [data = storage.data] { return data; }, /*in_memory=*/true}});
  }
  return torch_file_members(std::move(pickled.bytes), std::move(storages));
}

void write_torch_file(const std::string& path, const PyDocument& document) {
  ZipStream stream(kTorchFolder, torch_file_members(document));
  replace_file_by(path, [&](const std::string& work) { write_zip(work, stream); });
}

}  // namespace deepscale
