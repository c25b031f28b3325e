// The restricted pickle reader: what it accepts can be walked, and every tensor in it keeps what the reader promises.
#include "checkpoint/pickle.h"

#include <algorithm>
#include <unordered_set>
#include <vector>

#include "deepscale/error.h"
#include "fuzz_support.h"

namespace {

using deepscale::PyKind;
using deepscale::PyNode;
using deepscale::PyTensor;
using deepscale::PyValue;
using deepscale::fuzz::claim;

void check_tensor(const PyTensor& tensor) {
  claim(tensor.sizes.size() == tensor.strides.size(), "a tensor has a stride for every size");
  const int64_t numel = tensor.numel();
  claim(numel >= 0 && tensor.offset >= 0, "a tensor's element count is possible");
  if (numel > 0 && tensor.is_contiguous()) {
    claim(numel <= tensor.storage_numel - tensor.offset, "a contiguous tensor lies inside its storage");
  }
}

void check_value(const PyValue& value) {
  constexpr std::string_view kKey = "optimizer_state_dict";
  if (value.is_dict()) {
    (void)value.find(kKey);
    (void)value.find(int64_t{0});
  }
  try {
    (void)value.as_entries("a dictionary");
  } catch (const deepscale::CheckpointError&) {
  }
  try {
    (void)value.as_shape("a shape");
  } catch (const deepscale::CheckpointError&) {
  }
  try {
    (void)value.as_int("a number");
  } catch (const deepscale::CheckpointError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const deepscale::PyDocument document = deepscale::read_pickle(deepscale::fuzz::text_of(data, size));
    std::vector<const PyNode*> open;
    std::unordered_set<const PyNode*> seen;
    const auto visit = [&](const PyValue& value) {
      check_value(value);
      if (value.node() != nullptr && seen.insert(value.node()).second) open.push_back(value.node());
    };
    visit(document.root);
    while (!open.empty()) {
      const PyNode* const node = open.back();
      open.pop_back();
      if (node->kind == PyKind::kTensor) check_tensor(node->tensor);
      for (const PyValue& item : node->items) visit(item);
      visit(node->state);
    }
  } catch (const deepscale::CheckpointError& error) {
    deepscale::fuzz::claim_readable(error.what());
  }
  return 0;
}
