#include "checkpoint/py_value.h"

#include <cmath>

#include "base/error.h"

namespace deepscale {

int64_t PyTensor::numel() const {
  int64_t count = 1;
  for (const int64_t size : sizes) {
    if (size == 0) return 0;  // whatever the others are
    count *= size;
  }
  return count;
}

bool PyTensor::is_contiguous() const {
  if (numel() == 0) return true;
  int64_t expected = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

PyNode* PyValue::node() const {
  PyNode* const* held = std::get_if<PyNode*>(&data_);
  return held == nullptr ? nullptr : *held;
}

bool PyValue::is(PyKind kind) const {
  return node() != nullptr && node()->kind == kind;
}

namespace {

const PyNode* dictionary_of(const PyValue& value) {
  if (value.is_dict()) return value.node();
  if (value.is(PyKind::kObject) && value.node()->state.is_dict()) return value.node()->state.node();
  return nullptr;
}

}  // namespace

const PyValue* PyValue::find(std::string_view key) const {
  const PyNode* dictionary = dictionary_of(*this);
  if (dictionary == nullptr) return nullptr;
  for (size_t i = 0; i + 1 < dictionary->items.size(); i += 2) {
    const auto* name = dictionary->items[i].get_if<std::string>();
    if (name != nullptr && *name == key) return &dictionary->items[i + 1];
  }
  return nullptr;
}

const PyValue* PyValue::find(int64_t key) const {
  const PyNode* dictionary = dictionary_of(*this);
  if (dictionary == nullptr) return nullptr;
  for (size_t i = 0; i + 1 < dictionary->items.size(); i += 2) {
    const auto* number = dictionary->items[i].get_if<int64_t>();
    if (number != nullptr && *number == key) return &dictionary->items[i + 1];
  }
  return nullptr;
}

const PyValue& PyValue::at(std::string_view key) const {
  const PyValue* found = find(key);
  DS_CHECK_AS(CheckpointError, found != nullptr, "there is no entry \"{}\"", key);
  return *found;
}

int64_t PyValue::as_int(std::string_view what) const {
  if (const auto* number = get_if<int64_t>()) return *number;
  if (const auto* flag = get_if<bool>()) return *flag ? 1 : 0;
  const auto* real = get_if<double>();
  DS_CHECK_AS(CheckpointError, real != nullptr && *real == std::floor(*real) && std::abs(*real) < 9e15,
              "{} is not a whole number", what);
  return static_cast<int64_t>(*real);
}

double PyValue::as_double(std::string_view what) const {
  if (const auto* real = get_if<double>()) return *real;
  const auto* number = get_if<int64_t>();
  DS_CHECK_AS(CheckpointError, number != nullptr, "{} is not a number", what);
  return static_cast<double>(*number);
}

const std::string& PyValue::as_string(std::string_view what) const {
  const auto* text = get_if<std::string>();
  DS_CHECK_AS(CheckpointError, text != nullptr, "{} is not a text", what);
  return *text;
}

const std::vector<PyValue>& PyValue::as_items(std::string_view what) const {
  DS_CHECK_AS(CheckpointError, is_sequence(), "{} is not a list", what);
  return node()->items;
}

const PyTensor& PyValue::as_tensor(std::string_view what) const {
  DS_CHECK_AS(CheckpointError, is(PyKind::kTensor), "{} is not a tensor", what);
  return node()->tensor;
}

std::vector<int64_t> PyValue::as_shape(std::string_view what) const {
  const bool wrapped = is(PyKind::kCall) && node()->type == "torch.Size" && node()->items.size() == 1;
  std::vector<int64_t> shape;
  for (const PyValue& size : (wrapped ? node()->items[0] : *this).as_items(what)) shape.push_back(size.as_int(what));
  return shape;
}

std::vector<std::pair<std::string, const PyValue*>> PyValue::as_entries(std::string_view what) const {
  DS_CHECK_AS(CheckpointError, is_dict(), "{} is not a dictionary", what);
  std::vector<std::pair<std::string, const PyValue*>> entries;
  for (size_t i = 0; i + 1 < node()->items.size(); i += 2) {
    entries.emplace_back(node()->items[i].as_string(what), &node()->items[i + 1]);
  }
  return entries;
}

PyNode* PyDocument::make(PyKind kind, std::string type) {
  PyNode& node = nodes_.emplace_back();
  node.kind = kind;
  node.type = std::move(type);
  return &node;
}

PyNode* PyDocument::tensor(DType dtype, std::vector<int64_t> sizes, std::shared_ptr<const void> data) {
  PyNode* node = make(PyKind::kTensor);
  node->tensor.dtype = dtype;
  node->tensor.sizes = std::move(sizes);
  node->tensor.data = std::move(data);
  return node;
}

PyNode* PyDocument::tuple(std::vector<PyValue> items) {
  PyNode* node = make(PyKind::kTuple);
  node->items = std::move(items);
  return node;
}

PyNode* PyDocument::size(const std::vector<int64_t>& sizes) {
  PyNode* node = make(PyKind::kCall, "torch.Size");
  PyNode* const values = tuple({});
  // In place: of a moved temporary g++ 12 thinks that it may be uninitialized.
  for (const int64_t size : sizes) values->items.emplace_back(size);
  node->items.emplace_back(values);
  return node;
}

}  // namespace deepscale
