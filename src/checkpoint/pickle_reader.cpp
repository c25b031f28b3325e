#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>

#include "base/checked_math.h"
#include "base/error.h"
#include "base/text.h"
#include "checkpoint/pickle.h"

namespace deepscale {
namespace {

constexpr size_t kMostDimensions = 64;
// Elements beyond its storage's that a tensor may have because it repeats some (stride 0): reading makes all of them.
constexpr int64_t kMostRepeated = int64_t{1} << 20;

class PickleReader {
 public:
  explicit PickleReader(std::string_view bytes) : bytes_(bytes) {}

  PyDocument read() {
    try {
      while (!done_) {
        opcode_at_ = position_;
        step(static_cast<uint8_t>(take(1)[0]));
      }
    } catch (const CheckpointError& error) {
      ds_throw<CheckpointError>("{} (at byte {} of its pickled part)", error.what(), opcode_at_);
    }
    return std::move(document_);
  }

 private:
  // --- bytes
  std::string_view take(uint64_t count) {
    DS_CHECK_AS(CheckpointError, count <= bytes_.size() - position_, "the data ends too early");
    const std::string_view part = bytes_.substr(position_, count);
    position_ += count;
    return part;
  }

  template <typename T>
  T number() {
    T value{};
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));  // little endian, as every target
    return value;
  }

  std::string_view line() {
    const size_t end = bytes_.find('\n', position_);
    DS_CHECK_AS(CheckpointError, end != std::string_view::npos, "the data ends too early");
    const std::string_view text = bytes_.substr(position_, end - position_);
    position_ = end + 1;
    return text;
  }

  // --- stack
  void push(PyValue value) { stack_.push_back(std::move(value)); }

  PyValue pop() {
    DS_CHECK_AS(CheckpointError, stack_.size() > floor(), "an instruction lacks its operand");
    PyValue value = std::move(stack_.back());
    stack_.pop_back();
    return value;
  }

  [[nodiscard]] size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  PyValue& top() {
    DS_CHECK_AS(CheckpointError, stack_.size() > floor(), "an instruction lacks its operand");
    return stack_.back();
  }

  /// Everything above the last mark.
  std::vector<PyValue> pop_marked() {
    DS_CHECK_AS(CheckpointError, !marks_.empty(), "an instruction lacks its mark");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<PyValue> items(std::make_move_iterator(begin), std::make_move_iterator(stack_.end()));
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }

  std::vector<PyValue> pop_count(size_t count) {
    std::vector<PyValue> items(count);
    for (size_t i = count; i-- > 0;) items[i] = pop();
    return items;
  }

  // --- construction
  void push_node(PyKind kind, std::vector<PyValue> items = {}) {
    PyNode* node = document_.make(kind);
    node->items = std::move(items);
    push(node);
  }

  void append(PyValue& target, std::vector<PyValue> items) {
    DS_CHECK_AS(CheckpointError, target.is(PyKind::kList) || target.is(PyKind::kObject) || target.is(PyKind::kCall),
                "elements are added to something that is no list");
    for (auto& item : items) target.node()->items.push_back(std::move(item));
  }

  void set_items(PyValue& target, std::vector<PyValue> items) {
    DS_CHECK_AS(CheckpointError, items.size() % 2 == 0, "a key has no value");
    PyNode* node = target.node();
    if (node != nullptr && (node->kind == PyKind::kObject || node->kind == PyKind::kCall)) {
      // A dictionary's subclass: its entries are kept as attributes. They come in batches of 1000.
      if (!node->state.is_dict()) node->state = document_.dict();
      node = node->state.node();
    }
    DS_CHECK_AS(CheckpointError, node != nullptr && (node->kind == PyKind::kDict || node->kind == PyKind::kOrderedDict),
                "entries are added to something that is no dictionary");
    for (auto& item : items) node->items.push_back(std::move(item));
  }

  void global(std::string_view module, std::string_view name) {
    push(document_.make(PyKind::kClass, std::string(module) + "." + std::string(name)));
  }

  void build() {
    const PyValue state = pop();
    PyNode* node = top().node();
    DS_CHECK_AS(CheckpointError, node != nullptr, "attributes are given to a plain value");
    // Attributes of dictionaries and tensors (state_dict's _metadata) carry nothing that we need.
    if (node->kind == PyKind::kObject || node->kind == PyKind::kCall) node->state = state;
  }

  void call(PyKind kind) {
    const PyValue arguments = pop();
    const PyValue callee = pop();
    DS_CHECK_AS(CheckpointError, callee.is(PyKind::kClass) && arguments.is(PyKind::kTuple),
                "something that is no class is called");
    const std::string& type = callee.node()->type;
    const std::vector<PyValue>& items = arguments.node()->items;
    count_copied(items.size());
    if (type == "collections.OrderedDict") {
      push(ordered_dict(items));
    } else if (type == "collections.defaultdict" || type == "builtins.dict") {
      push_node(PyKind::kDict);
    } else if (auto tensor = tensor_of(type, items); !tensor.is_none()) {
      push(std::move(tensor));
    } else {
      PyNode* node = document_.make(kind, type);
      node->items = items;
      push(node);
    }
  }

  /// What torch's functions for tensors make of their arguments; None: it is none of them.
  PyValue tensor_of(const std::string& function, const std::vector<PyValue>& items) {
    if (function == "torch._utils._rebuild_tensor_v2") return rebuild_tensor(items);
    const bool of_parameter = function == "torch._utils._rebuild_parameter";
    if (of_parameter && !items.empty() && items[0].is(PyKind::kTensor)) return items[0];
    // A tensor with attributes, or of another class: (function, class, arguments of the function, attributes).
    const bool of_type = function == "torch._tensor._rebuild_from_type_v2" && items.size() >= 3 &&
                         items[0].is(PyKind::kClass) && items[2].is(PyKind::kTuple);
    if (!of_type || items[0].node()->type == function) return {};
    return tensor_of(items[0].node()->type, items[2].node()->items);
  }

  /// Arguments are copied, and two bytes of a pickle are enough to name a long list of them once more. Those that a
  /// program wrote are new lists, whose elements took a byte each at least.
  void count_copied(size_t elements) {
    copied_ += elements;
    DS_CHECK_AS(CheckpointError, copied_ <= bytes_.size(),
                "calls have more arguments than {} bytes can hold: the same ones again and again", bytes_.size());
  }

  PyNode* ordered_dict(const std::vector<PyValue>& arguments) {
    PyNode* node = document_.ordered_dict();
    if (arguments.empty()) return node;
    const auto& pairs = arguments[0].as_items("OrderedDict's argument");
    count_copied(pairs.size());
    for (const PyValue& pair : pairs) {
      const auto& both = pair.as_items("an entry of an OrderedDict");
      DS_CHECK_AS(CheckpointError, both.size() == 2, "an entry of an OrderedDict is no pair");
      node->set(both[0], both[1]);
    }
    return node;
  }

  /// ("storage", storage class, key, device, element count)
  void persistent_id() {
    const PyValue id = pop();
    const auto& items = id.as_items("a storage's reference");
    DS_CHECK_AS(CheckpointError,
                items.size() >= 5 && items[0].as_string("a storage's kind") == "storage" && items[1].is(PyKind::kClass),
                "a reference that is no tensor's storage");
    const std::string& type = items[1].node()->type;
    PyNode* node = document_.make(PyKind::kStorage, type);
    node->tensor.dtype = storage_dtype(std::string_view(type).substr(type.rfind('.') + 1));
    node->tensor.record = items[2].as_string("a storage's key");
    node->tensor.storage_numel = items[4].as_int("a storage's size");
    DS_CHECK_AS(CheckpointError, node->tensor.storage_numel >= 0 && node->tensor.storage_numel < int64_t{1} << 56,
                "a storage's size is impossible");
    push(node);
  }

  PyNode* rebuild_tensor(const std::vector<PyValue>& items) {
    DS_CHECK_AS(CheckpointError, items.size() >= 4 && items[0].is(PyKind::kStorage), "a tensor lacks its storage");
    PyNode* node = document_.make(PyKind::kTensor);
    PyTensor& tensor = node->tensor;
    tensor = items[0].node()->tensor;
    tensor.offset = items[1].as_int("a tensor's offset");
    tensor.sizes = items[2].as_shape("a tensor's shape");
    tensor.strides = items[3].as_shape("a tensor's strides");
    DS_CHECK_AS(CheckpointError, tensor.sizes.size() <= kMostDimensions, "a tensor has {} dimensions",
                tensor.sizes.size());
    check_extent(tensor);
    return node;
  }

  /// Every element lies inside the storage.
  static void check_extent(const PyTensor& tensor) {
    DS_CHECK_AS(CheckpointError, tensor.sizes.size() == tensor.strides.size() && tensor.offset >= 0,
                "a tensor's shape and strides do not match");
    std::optional<int64_t> last = tensor.offset;  // nothing: beyond 64 bits
    std::optional<int64_t> numel = 1;
    for (size_t d = 0; d < tensor.sizes.size(); ++d) {
      const int64_t size = tensor.sizes[d], stride = tensor.strides[d];
      DS_CHECK_AS(CheckpointError, size >= 0 && stride >= 0, "a tensor has a negative size or stride");
      const auto reach = checked_product(std::max<int64_t>(size - 1, 0), stride);
      if (numel) numel = checked_product(*numel, size);
      if (last) last = reach ? checked_sum(*last, *reach) : std::nullopt;
    }
    const bool possible = numel && last;
    DS_CHECK_AS(CheckpointError, !possible || *numel <= std::max(tensor.storage_numel, kMostRepeated),
                "a tensor of {} elements repeats those of a storage of {}", *numel, tensor.storage_numel);
    DS_CHECK_AS(CheckpointError, possible && (*numel == 0 || *last < tensor.storage_numel),
                "a tensor reaches beyond its storage of {} elements", tensor.storage_numel);
  }

  // --- memo: numbered from 0 by what writes pickles; other numbers are allowed, and cost no more than what they hold
  [[nodiscard]] size_t memo_size() const { return memo_.size() + far_memo_.size(); }
  void put(uint32_t index) {
    if (index < memo_.size()) {
      memo_[index] = top();
    } else if (index == memo_.size()) {
      memo_.push_back(top());
      far_memo_.erase(index);
    } else {
      far_memo_[index] = top();
    }
  }
  void get(uint32_t index) {
    if (index < memo_.size()) return push(memo_[index]);
    const auto found = far_memo_.find(index);
    DS_CHECK_AS(CheckpointError, found != far_memo_.end(), "an unknown object is referred to");
    push(found->second);
  }

  // --- plain values
  void push_text(uint64_t length) { push(std::string(take(length))); }

  void push_bytes(uint64_t length) {
    PyNode* node = document_.make(PyKind::kCall, "builtins.bytes");
    node->add(std::string(take(length)));
    push(node);
  }

  void push_long(uint64_t length) {
    const std::string_view digits = take(length);
    if (length <= 8) {
      uint64_t value = length > 0 && (static_cast<uint8_t>(digits.back()) & 0x80) != 0 ? ~uint64_t{0} : 0;
      for (size_t i = length; i-- > 0;) value = value << 8 | static_cast<uint8_t>(digits[i]);
      push(static_cast<int64_t>(value));
      return;
    }
    double value = static_cast<int8_t>(digits.back());
    for (size_t i = length - 1; i-- > 0;) value = value * 256.0 + static_cast<uint8_t>(digits[i]);
    push(value);
  }

  void push_float() {
    uint64_t bits = 0;
    for (const char c : take(8)) bits = bits << 8 | static_cast<uint8_t>(c);  // big endian
    push(std::bit_cast<double>(bits));
  }

  void push_decimal() {
    std::string text(line());
    if (!text.empty() && text.back() == 'L') text.pop_back();
    if (text == "00" || text == "01") return push(text == "01");
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    DS_CHECK_AS(CheckpointError, !text.empty() && end == text.c_str() + text.size(), "a number cannot be read");
    if (errno == ERANGE) return push(std::strtod(text.c_str(), nullptr));  // as other integers beyond 64 bits
    push(static_cast<int64_t>(value));
  }

  void step(uint8_t opcode);
  bool step_plain(uint8_t opcode);
  bool step_container(uint8_t opcode);
  bool step_object(uint8_t opcode);

  std::string_view bytes_;
  size_t position_ = 0;
  size_t opcode_at_ = 0;
  bool done_ = false;
  PyDocument document_;
  std::vector<PyValue> stack_;
  std::vector<size_t> marks_;
  std::vector<PyValue> memo_;
  std::map<uint32_t, PyValue> far_memo_;
  size_t copied_ = 0;
};

/// Opcodes by their names in Python's pickletools.
bool PickleReader::step_plain(uint8_t opcode) {
  switch (opcode) {
    case 'N':
      return push(PyValue()), true;
    case 0x88:  // NEWTRUE
      return push(true), true;
    case 0x89:  // NEWFALSE
      return push(false), true;
    case 'J':  // BININT
      return push(static_cast<int64_t>(number<int32_t>())), true;
    case 'K':  // BININT1
      return push(static_cast<int64_t>(number<uint8_t>())), true;
    case 'M':  // BININT2
      return push(static_cast<int64_t>(number<uint16_t>())), true;
    case 'I':  // INT
    case 'L':  // LONG
      return push_decimal(), true;
    case 0x8a:  // LONG1
      return push_long(number<uint8_t>()), true;
    case 0x8b:  // LONG4
      return push_long(number<uint32_t>()), true;
    case 'G':  // BINFLOAT
      return push_float(), true;
    case 'X':  // BINUNICODE
    case 'T':  // BINSTRING
      return push_text(number<uint32_t>()), true;
    case 0x8c:  // SHORT_BINUNICODE
    case 'U':   // SHORT_BINSTRING
      return push_text(number<uint8_t>()), true;
    case 0x8d:  // BINUNICODE8
      return push_text(number<uint64_t>()), true;
    case 'V':  // UNICODE
      return push(std::string(line())), true;
    case 'C':  // SHORT_BINBYTES
      return push_bytes(number<uint8_t>()), true;
    case 'B':  // BINBYTES
      return push_bytes(number<uint32_t>()), true;
    case 0x8e:  // BINBYTES8
      return push_bytes(number<uint64_t>()), true;
    default:
      return false;
  }
}

bool PickleReader::step_container(uint8_t opcode) {
  switch (opcode) {
    case '(':  // MARK
      return marks_.push_back(stack_.size()), true;
    case '}':  // EMPTY_DICT
      return push_node(PyKind::kDict), true;
    case ']':  // EMPTY_LIST
      return push_node(PyKind::kList), true;
    case ')':  // EMPTY_TUPLE
      return push_node(PyKind::kTuple), true;
    case 0x8f:  // EMPTY_SET
      return push(document_.make(PyKind::kCall, "builtins.set")), true;
    case 't':  // TUPLE
      return push_node(PyKind::kTuple, pop_marked()), true;
    case 0x85:  // TUPLE1
    case 0x86:
    case 0x87:
      return push_node(PyKind::kTuple, pop_count(opcode - 0x84)), true;
    case 'l':  // LIST
      return push_node(PyKind::kList, pop_marked()), true;
    case 'd': {  // DICT
      std::vector<PyValue> items = pop_marked();
      push_node(PyKind::kDict);
      return set_items(top(), std::move(items)), true;
    }
    case 'a': {  // APPEND
      std::vector<PyValue> items = pop_count(1);
      return append(top(), std::move(items)), true;
    }
    case 'e':     // APPENDS
    case 0x90: {  // ADDITEMS
      std::vector<PyValue> items = pop_marked();
      return append(top(), std::move(items)), true;
    }
    case 's': {  // SETITEM
      std::vector<PyValue> items = pop_count(2);
      return set_items(top(), std::move(items)), true;
    }
    case 'u': {  // SETITEMS
      std::vector<PyValue> items = pop_marked();
      return set_items(top(), std::move(items)), true;
    }
    default:
      return false;
  }
}

bool PickleReader::step_object(uint8_t opcode) {
  switch (opcode) {
    case 'c': {  // GLOBAL
      const std::string_view module = line();
      return global(module, line()), true;
    }
    case 0x93: {  // STACK_GLOBAL
      const PyValue name = pop();
      const PyValue module = pop();
      return global(module.as_string("a module's name"), name.as_string("a class's name")), true;
    }
    case 'R':  // REDUCE
      return call(PyKind::kCall), true;
    case 0x81:  // NEWOBJ
      return call(PyKind::kObject), true;
    case 0x92: {  // NEWOBJ_EX: keyword arguments are dropped
      (void)pop();
      return call(PyKind::kObject), true;
    }
    case 'b':  // BUILD
      return build(), true;
    case 'Q':  // BINPERSID
      return persistent_id(), true;
    case 'q':  // BINPUT
      return put(number<uint8_t>()), true;
    case 'r':  // LONG_BINPUT
      return put(number<uint32_t>()), true;
    case 0x94:  // MEMOIZE
      return put(static_cast<uint32_t>(memo_size())), true;
    case 'h':  // BINGET
      return get(number<uint8_t>()), true;
    case 'j':  // LONG_BINGET
      return get(number<uint32_t>()), true;
    default:
      return false;
  }
}

void PickleReader::step(uint8_t opcode) {
  if (step_plain(opcode) || step_container(opcode) || step_object(opcode)) return;
  switch (opcode) {
    case 0x80: {  // PROTO
      const auto protocol = number<uint8_t>();
      DS_CHECK_AS(CheckpointError, protocol <= 5, "pickle protocol {} is newer than this program knows", protocol);
      return;
    }
    case 0x95:  // FRAME
      (void)number<uint64_t>();
      return;
    case '0':  // POP
      (void)pop();
      return;
    case '2':  // DUP
      push(PyValue(top()));
      return;
    case '.':  // STOP
      document_.root = pop();
      done_ = true;
      return;
    default:
      ds_throw<CheckpointError>("instruction {:#04x} is not supported", opcode);
  }
}

struct StorageName {
  std::string_view name;
  DType dtype;
};
/// The first name of a dtype is the one that is written.
constexpr std::array<StorageName, 11> kStorageNames = {{{"FloatStorage", DType::kFloat32},
                                                        {"HalfStorage", DType::kFloat16},
                                                        {"BFloat16Storage", DType::kBFloat16},
                                                        {"DoubleStorage", DType::kFloat64},
                                                        {"LongStorage", DType::kInt64},
                                                        {"IntStorage", DType::kInt32},
                                                        {"ShortStorage", DType::kInt16},
                                                        {"CharStorage", DType::kInt8},
                                                        {"ByteStorage", DType::kUInt8},
                                                        {"BoolStorage", DType::kBool},
                                                        {"UntypedStorage", DType::kUInt8}}};

}  // namespace

DType storage_dtype(std::string_view class_name) {
  for (const auto& known : kStorageNames) {
    if (known.name == class_name) return known.dtype;
  }
  ds_throw<CheckpointError>("tensors of type {} are not supported", printable(class_name));
}

std::string_view storage_class(DType dtype) {
  const auto* const known =
      std::find_if(kStorageNames.begin(), kStorageNames.end(), [&](const auto& name) { return name.dtype == dtype; });
  return known->name;  // every DType has one
}

PyDocument read_pickle(std::string_view bytes) {
  return PickleReader(bytes).read();
}

}  // namespace deepscale
