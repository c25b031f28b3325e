// What a checkpoint file holds, as data: Python's plain values, tensors by reference to their bytes, and instances of
// classes by name. Nothing of a file is ever executed; a class that we do not know is just a name with arguments.
//
// A PyDocument owns all nodes in one list, so shared and even cyclic structures are freed without recursion.
// Torch-free. Threads: reading from several threads is safe.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/dtype.h"

namespace deepscale {

enum class PyKind {
  kList,
  kTuple,
  kDict,
  kOrderedDict,
  kClass,    ///< a class or function itself: PyNode::type is "module.name"
  kCall,     ///< type(*items): what a function or constructor would return
  kObject,   ///< an instance of type, made from items, with PyNode::state
  kStorage,  ///< the bytes behind tensors
  kTensor,
};

/// A tensor of a file (record, sizes, strides, offset) or one to be written (data, sizes).
struct PyTensor {
  DType dtype = DType::kFloat32;
  std::string record;         ///< name of the bytes in the file
  int64_t storage_numel = 0;  ///< elements behind the name
  int64_t offset = 0;         ///< first element
  std::vector<int64_t> sizes, strides;
  std::shared_ptr<const void> data;  ///< its elements, row-major, in main memory

  [[nodiscard]] int64_t numel() const;
  [[nodiscard]] bool is_contiguous() const;
};

struct PyNode;

class PyValue {
 public:
  PyValue() = default;  ///< None
  PyValue(bool value) : data_(value) {}
  PyValue(int value) : data_(static_cast<int64_t>(value)) {}
  PyValue(int64_t value) : data_(value) {}
  PyValue(double value) : data_(value) {}
  PyValue(std::string value) : data_(std::make_shared<const std::string>(std::move(value))) {}
  PyValue(const char* value) : PyValue(std::string(value)) {}
  PyValue(PyNode* node) : data_(node) {}
  PyValue(const void*) = delete;  ///< would become a bool

  [[nodiscard]] bool is_none() const { return std::holds_alternative<std::monostate>(data_); }
  template <typename T>
  [[nodiscard]] const T* get_if() const {
    if constexpr (std::is_same_v<T, std::string>) {
      const Text* const text = std::get_if<Text>(&data_);
      return text == nullptr ? nullptr : text->get();
    } else {
      return std::get_if<T>(&data_);
    }
  }
  /// The node, or null for a plain value.
  [[nodiscard]] PyNode* node() const;
  [[nodiscard]] bool is(PyKind kind) const;
  [[nodiscard]] bool is_dict() const { return is(PyKind::kDict) || is(PyKind::kOrderedDict); }
  [[nodiscard]] bool is_sequence() const { return is(PyKind::kList) || is(PyKind::kTuple); }

  /// Entry of a dictionary, or of an object's attributes; null when there is none.
  [[nodiscard]] const PyValue* find(std::string_view key) const;
  [[nodiscard]] const PyValue* find(int64_t key) const;
  /// The same; CheckpointError naming the key when there is none.
  [[nodiscard]] const PyValue& at(std::string_view key) const;

  // Conversions throw CheckpointError naming `what`, which the message calls the value.
  [[nodiscard]] int64_t as_int(std::string_view what) const;  ///< also from bool and whole floats
  [[nodiscard]] double as_double(std::string_view what) const;
  [[nodiscard]] const std::string& as_string(std::string_view what) const;
  [[nodiscard]] const std::vector<PyValue>& as_items(std::string_view what) const;  ///< of a list or tuple
  [[nodiscard]] const PyTensor& as_tensor(std::string_view what) const;
  /// Sizes, written as a tuple, a list or torch.Size.
  [[nodiscard]] std::vector<int64_t> as_shape(std::string_view what) const;
  /// (key, value) of a dictionary with string keys, in the file's order.
  [[nodiscard]] std::vector<std::pair<std::string, const PyValue*>> as_entries(std::string_view what) const;

 private:
  // Shared: two bytes of a file are enough to name a text of a megabyte once more.
  using Text = std::shared_ptr<const std::string>;
  std::variant<std::monostate, bool, int64_t, double, Text, PyNode*> data_;
};

struct PyNode {
  PyKind kind = PyKind::kList;
  std::string type;
  std::vector<PyValue> items;  ///< elements, arguments, or key, value, key, value ...
  PyValue state;
  PyTensor tensor;

  /// Appends to a dictionary (does not look for an older entry).
  void set(PyValue key, PyValue value) {
    items.push_back(std::move(key));
    items.push_back(std::move(value));
  }
  void add(PyValue value) { items.push_back(std::move(value)); }
};

class PyDocument {
 public:
  PyDocument() = default;
  PyDocument(PyDocument&&) = default;
  PyDocument& operator=(PyDocument&&) = default;

  PyNode* make(PyKind kind, std::string type = {});
  PyNode* list() { return make(PyKind::kList); }
  PyNode* dict() { return make(PyKind::kDict); }
  PyNode* ordered_dict() { return make(PyKind::kOrderedDict); }
  /// One to be written; data: its elements, row-major. Null only for a tensor without elements.
  PyNode* tensor(DType dtype, std::vector<int64_t> sizes, std::shared_ptr<const void> data);
  PyNode* tuple(std::vector<PyValue> items);
  PyNode* size(const std::vector<int64_t>& sizes);  ///< torch.Size

  PyValue root;

 private:
  std::deque<PyNode> nodes_;
};

}  // namespace deepscale
