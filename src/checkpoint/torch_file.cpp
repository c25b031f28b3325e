#include "checkpoint/torch_file.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <caffe2/serialize/inline_container.h>

#include <fstream>
#include <map>

#include "base/error.h"
#include "checkpoint/file_replace.h"
#include "checkpoint/pickle.h"
#include "platform/files.h"

namespace deepscale {

struct TorchFile::State {
  std::string path;
  PyDocument document;
  std::map<std::string, int64_t> begins;  ///< record name -> first byte in the file
  mutable std::ifstream stream;
};

namespace {

using caffe2::serialize::PyTorchStreamReader;
using caffe2::serialize::PyTorchStreamWriter;

std::string read_record(PyTorchStreamReader& zip, const std::string& name) {
  DS_CHECK_AS(CheckpointError, zip.hasRecord(name), "it has no part \"{}\"", name);
  auto [data, size] = zip.getRecord(name);
  return {static_cast<const char*>(data.get()), size};
}

/// Tensors that a value can reach, each node once.
void collect_tensors(const PyValue& root, std::vector<const PyTensor*>& found) {
  std::vector<const PyNode*> open;
  std::map<const PyNode*, bool> seen;
  const auto visit = [&](const PyValue& value) {
    if (value.node() != nullptr && seen.emplace(value.node(), true).second) open.push_back(value.node());
  };
  visit(root);
  while (!open.empty()) {
    const PyNode* node = open.back();
    open.pop_back();
    if (node->kind == PyKind::kTensor) found.push_back(&node->tensor);
    for (const PyValue& item : node->items) visit(item);
    visit(node->state);
  }
}

}  // namespace

TorchFile::TorchFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
TorchFile::TorchFile(TorchFile&&) noexcept = default;
TorchFile& TorchFile::operator=(TorchFile&&) noexcept = default;
TorchFile::~TorchFile() = default;
const std::string& TorchFile::path() const {
  return state_->path;
}
const PyValue& TorchFile::root() const {
  return state_->document.root;
}

TorchFile TorchFile::open(const std::string& path) {
  const auto bytes = file_size(path);
  DS_CHECK_AS(CheckpointError, bytes.has_value(),
              "checkpoint file {} does not exist: the checkpoint is not complete, or the directory or tag is wrong",
              path);
  auto state = std::make_unique<State>();
  state->path = path;
  try {
    PyTorchStreamReader zip(path);
    if (zip.hasRecord("byteorder")) {
      DS_CHECK_AS(CheckpointError, read_record(zip, "byteorder") == "little", "it is of a big-endian machine");
    }
    state->document = read_pickle(read_record(zip, "data.pkl"));
    std::vector<const PyTensor*> tensors;
    collect_tensors(state->document.root, tensors);
    for (const PyTensor* tensor : tensors) {
      const std::string name = "data/" + tensor->record;
      DS_CHECK_AS(CheckpointError, zip.hasRecord(name), "it has no part \"{}\"", name);
      const auto needed = tensor->storage_numel * static_cast<int64_t>(c10::elementSize(tensor->dtype));
      const auto size = static_cast<int64_t>(zip.getRecordSize(name));
      const auto begin = static_cast<int64_t>(zip.getRecordOffset(name));
      DS_CHECK_AS(CheckpointError, size >= needed && begin + needed <= *bytes,
                  "its part \"{}\" has {} bytes, {} are needed", name, size, needed);
      state->begins[tensor->record] = begin;
    }
  } catch (const c10::Error& error) {
    ds_throw<CheckpointError>(
        "checkpoint file {} is cut off, damaged, or not a file of torch.save ({}): restore it, or load another tag",
        path, error.what_without_backtrace());
  } catch (const CheckpointError& error) {
    ds_throw<CheckpointError>("checkpoint file {} is damaged or of another kind: {}", path, error.what());
  }
  state->stream.open(path, std::ios::binary);
  DS_CHECK_AS(CheckpointError, state->stream.good(), "checkpoint file {} cannot be opened", path);
  return TorchFile(std::move(state));
}

at::Tensor TorchFile::read_range(const PyTensor& tensor, int64_t begin, int64_t length) const {
  DS_CHECK_AS(CheckpointError, begin >= 0 && length >= 0 && begin + length <= tensor.numel(),
              "checkpoint file {}: elements {} to {} of a tensor of {} are asked for", path(), begin, begin + length,
              tensor.numel());
  if (!tensor.is_contiguous()) return read(tensor).reshape({-1}).narrow(0, begin, length);
  const at::Tensor values = at::empty({length}, at::TensorOptions(tensor.dtype));
  if (length == 0) return values;
  const auto element = static_cast<int64_t>(c10::elementSize(tensor.dtype));
  state_->stream.clear();
  state_->stream.seekg(state_->begins.at(tensor.record) + (tensor.offset + begin) * element);
  state_->stream.read(static_cast<char*>(values.data_ptr()), length * element);
  DS_CHECK_AS(CheckpointError, state_->stream.good(), "checkpoint file {} became shorter while it was read", path());
  return values;
}

at::Tensor TorchFile::read(const PyTensor& tensor) const {
  if (tensor.is_contiguous()) return read_range(tensor, 0, tensor.numel()).view(tensor.sizes);
  PyTensor storage = tensor;
  storage.offset = 0;
  storage.sizes = {tensor.storage_numel};
  storage.strides = {1};
  return read_range(storage, 0, tensor.storage_numel)
      .as_strided(tensor.sizes, tensor.strides, tensor.offset)
      .contiguous();
}

void write_torch_file(const std::string& path, const PyDocument& document) {
  const PickledTensors pickled = write_pickle(document);
  replace_file(path, [&](std::ostream& out) {
    try {
      PyTorchStreamWriter zip([&](const void* data, size_t size) {
        out.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
        return out.good() ? size : 0;
      });
      zip.writeRecord("data.pkl", pickled.bytes.data(), pickled.bytes.size());
      zip.writeRecord("byteorder", "little", 6);
      for (size_t i = 0; i < pickled.storages.size(); ++i) {
        const at::Tensor& values = pickled.storages[i];
        // torch's writer wants an address even for no bytes.
        const void* data = values.numel() == 0 ? static_cast<const void*>(&values) : values.const_data_ptr();
        zip.writeRecord("data/" + std::to_string(i), data, values.nbytes());
      }
      zip.writeEndOfFile();
    } catch (const c10::Error& error) {
      ds_throw<IoError>("cannot write {}: {} (the disk may be full)", path, error.what_without_backtrace());
    }
  });
}

}  // namespace deepscale
