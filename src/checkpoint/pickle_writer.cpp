#include <algorithm>
#include <bit>
#include <limits>
#include <map>

#include "base/error.h"
#include "checkpoint/pickle.h"

namespace deepscale {
namespace {

constexpr int kDeepestValue = 200;

class Writer {
 public:
  PickledTensors write(const PyDocument& document) {
    raw("\x80\x02");
    value(document.root, 0);
    raw(".");
    return std::move(result_);
  }

 private:
  void raw(std::string_view bytes) { result_.bytes.append(bytes); }

  template <typename T>
  void number(T value) {
    result_.bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));  // little endian, as every target
  }

  void text(std::string_view text) {
    DS_CHECK_AS(IoError, text.size() <= std::numeric_limits<uint32_t>::max(), "a text of {} bytes is too long",
                text.size());
    raw("X");
    number(static_cast<uint32_t>(text.size()));
    raw(text);
  }

  void integer(int64_t value) {
    if (value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max()) {
      raw("J");
      number(static_cast<int32_t>(value));
      return;
    }
    raw("\x8a\x08");
    number(value);
  }

  void real(double value) {
    raw("G");
    const auto bits = std::bit_cast<uint64_t>(value);
    for (int shift = 56; shift >= 0; shift -= 8) result_.bytes.push_back(static_cast<char>(bits >> shift));
  }

  /// "module.name" as an instruction.
  void global(const std::string& type) {
    const size_t dot = type.rfind('.');
    raw("c" + type.substr(0, dot) + "\n" + type.substr(dot + 1) + "\n");
  }

  void value(const PyValue& given, int depth) {
    DS_CHECK_AS(IoError, depth <= kDeepestValue, "values are nested more than {} deep", kDeepestValue);
    if (given.is_none()) return raw("N");
    if (const auto* flag = given.get_if<bool>()) return raw(*flag ? "\x88" : "\x89");
    if (const auto* whole = given.get_if<int64_t>()) return integer(*whole);
    if (const auto* fraction = given.get_if<double>()) return real(*fraction);
    if (const auto* words = given.get_if<std::string>()) return text(*words);
    node(*given.node(), depth);
  }

  void marked(const std::vector<PyValue>& items, std::string_view end, int depth) {
    raw("(");
    for (const PyValue& item : items) value(item, depth + 1);
    raw(end);
  }

  void node(const PyNode& node, int depth) {
    switch (node.kind) {
      case PyKind::kList:
        raw("]");
        return marked(node.items, "e", depth);
      case PyKind::kTuple:
        return marked(node.items, "t", depth);
      case PyKind::kDict:
        raw("}");
        return marked(node.items, "u", depth);
      case PyKind::kOrderedDict:
        global("collections.OrderedDict");
        raw(")R");
        return marked(node.items, "u", depth);
      case PyKind::kTensor:
        return tensor(node);
      case PyKind::kClass:
        return global(node.type);
      case PyKind::kCall:
      case PyKind::kObject:
        global(node.type);
        marked(node.items, "t", depth);
        raw(node.kind == PyKind::kCall ? "R" : "\x81");
        if (node.state.is_none()) return;
        value(node.state, depth + 1);
        return raw("b");
      case PyKind::kStorage:
        ds_throw<IoError>("a storage cannot be written without its tensor");
    }
  }

  /// Two names of one node share their bytes.
  std::string storage_key(const PyNode& node) {
    const auto [place, fresh] = keys_.emplace(&node, result_.storages.size());
    if (fresh) result_.storages.push_back({node.tensor.data, node.tensor.numel() * size_of(node.tensor.dtype)});
    return std::to_string(place->second);
  }

  void tensor(const PyNode& node) {
    const std::vector<int64_t>& sizes = node.tensor.sizes;
    const int64_t numel = node.tensor.numel();
    DS_CHECK_AS(IoError, node.tensor.data != nullptr || numel == 0,
                "a tensor of another file has to be read before it is written");
    global("torch._utils._rebuild_tensor_v2");
    raw("((");
    text("storage");
    global("torch." + std::string(storage_class(node.tensor.dtype)));
    text(storage_key(node));
    text("cpu");
    integer(numel);
    raw("tQ");
    integer(0);
    raw("(");
    for (const int64_t size : sizes) integer(size);
    raw("t(");
    for (size_t d = 0; d < sizes.size(); ++d) {
      int64_t stride = 1;
      for (size_t inner = d + 1; inner < sizes.size(); ++inner) stride *= std::max<int64_t>(sizes[inner], 1);
      integer(stride);
    }
    raw("t\x89");
    global("collections.OrderedDict");
    raw(")RtR");
  }

  std::map<const PyNode*, size_t> keys_;
  PickledTensors result_;
};

}  // namespace

PickledTensors write_pickle(const PyDocument& document) {
  return Writer().write(document);
}

}  // namespace deepscale
