// A file of torch.save: zip directory, pickle, and the tensors' bytes. Chance never finds a checksum, so a second copy
// of the input, with the checksums that its parts should have, is read as well.
#include "checkpoint/torch_archive.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>
#include <vector>

#include "base/dtype.h"
#include "deepscale/error.h"
#include "fuzz_support.h"
#include "kernels/cpu/crc32.h"

namespace {

using deepscale::PyKind;
using deepscale::PyNode;
using deepscale::PyTensor;
using deepscale::PyValue;
using deepscale::TorchArchive;
using deepscale::fuzz::claim;

void read_tensor(TorchArchive& archive, const PyTensor& tensor, size_t file_bytes) {
  const int64_t bytes = tensor.storage_numel * deepscale::size_of(tensor.dtype);
  claim(bytes >= 0 && bytes <= static_cast<int64_t>(file_bytes), "a storage is not larger than its file");
  std::string whole(static_cast<size_t>(bytes), '\0');
  archive.read_storage(tensor, 0, tensor.storage_numel, whole.data());
  try {
    archive.read_storage(tensor, 1, tensor.storage_numel, whole.data());
    claim(false, "elements behind a storage cannot be read");
  } catch (const deepscale::CheckpointError&) {
  }
}

void read_archive(std::string_view bytes) {
  const std::string name = deepscale::fuzz::as_file(bytes);
  try {
    TorchArchive archive = TorchArchive::open(name);
    std::vector<const PyNode*> open;
    std::unordered_set<const PyNode*> seen;
    const auto visit = [&](const PyValue& value) {
      if (value.node() != nullptr && seen.insert(value.node()).second) open.push_back(value.node());
    };
    visit(archive.root());
    while (!open.empty()) {
      const PyNode* const node = open.back();
      open.pop_back();
      if (node->kind == PyKind::kTensor) read_tensor(archive, node->tensor, bytes.size());
      for (const PyValue& item : node->items) visit(item);
      visit(node->state);
    }
  } catch (const deepscale::CheckpointError& error) {
    deepscale::fuzz::claim_readable(error.what());
  }
}

template <typename T>
T field(const std::string& bytes, size_t at) {
  T value{};
  if (at <= bytes.size() && bytes.size() - at >= sizeof(T)) std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

/// Gives every directory entry whose bytes are in the file their checksum.
void correct_checksums(std::string& bytes) {
  constexpr size_t kEntryBytes = 46, kLocalBytes = 30;
  for (size_t at = bytes.find("PK\x01\x02"); at != std::string::npos; at = bytes.find("PK\x01\x02", at + 1)) {
    if (at + kEntryBytes > bytes.size()) break;
    const uint64_t length = field<uint32_t>(bytes, at + 24);
    const uint64_t local = field<uint32_t>(bytes, at + 42);
    const uint64_t begin =
        local + kLocalBytes + field<uint16_t>(bytes, local + 26) + field<uint16_t>(bytes, local + 28);
    if (begin > bytes.size() || length > bytes.size() - begin) continue;
    const uint32_t crc = deepscale::kernels::crc32(bytes.data() + begin, static_cast<int64_t>(length));
    std::memcpy(bytes.data() + at + 16, &crc, sizeof(crc));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const deepscale::fuzz::FileRemover kRemover;
  const std::string given(deepscale::fuzz::text_of(data, size));
  read_archive(given);
  std::string corrected = given;
  correct_checksums(corrected);
  if (corrected != given) read_archive(corrected);
  return 0;
}
