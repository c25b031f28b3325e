// For tests: reads files as every other program of ours would, and says what is in them. Names come line by line on
// stdin, one line of JSON goes out for each: {"tensors": {NAME: {"dtype", "shape", "data": HEX}}, "metadata": {...}}
// for NAME.safetensors, {"elements": N} for the tensors of another file (torch.save), or {"refused": MESSAGE}. Data of
// at most 64 KB.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_archive.h"

namespace {

using deepscale::PyKind;
using deepscale::PyNode;
using deepscale::PyValue;
using Json = nlohmann::json;

std::string hex(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

Json read_safetensors(const std::string& path) {
  constexpr int64_t kMostShown = 64 * 1024;
  auto file = deepscale::SafetensorsFile::open(path);
  Json tensors = Json::object();
  for (const auto& entry : file.header().entries) {
    std::string bytes(static_cast<size_t>(std::min(entry.end - entry.begin, kMostShown)), '\0');
    file.read(entry, 0, static_cast<int64_t>(bytes.size()), bytes.data());
    tensors[entry.name] = {
        {"dtype", deepscale::safetensors_name(entry.dtype)}, {"shape", entry.shape}, {"data", hex(bytes)}};
  }
  return {{"tensors", tensors}, {"metadata", file.header().metadata}};
}

Json read_torch_file(const std::string& path) {
  const auto archive = deepscale::TorchArchive::open(path);
  std::vector<const PyNode*> open;
  std::unordered_set<const PyNode*> seen;
  const auto visit = [&](const PyValue& value) {
    if (value.node() != nullptr && seen.insert(value.node()).second) open.push_back(value.node());
  };
  visit(archive.root());
  int64_t elements = 0;
  while (!open.empty()) {
    const PyNode* const node = open.back();
    open.pop_back();
    if (node->kind == PyKind::kTensor) elements += node->tensor.numel();
    for (const PyValue& item : node->items) visit(item);
    visit(node->state);
  }
  return {{"elements", elements}};
}

}  // namespace

int main() {
  std::string path;
  while (std::getline(std::cin, path)) {
    Json answer;
    try {
      answer = path.ends_with(".safetensors") ? read_safetensors(path) : read_torch_file(path);
    } catch (const deepscale::CheckpointError& error) {
      answer = {{"refused", error.what()}};
    }
    std::cout << answer.dump() << std::endl;
  }
  return 0;
}
