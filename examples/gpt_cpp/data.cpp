#include "data.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <dirent.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "sha256.h"

namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::runtime_error(message);
}

bool exists(const std::string& path) {
  return std::ifstream(path).good();
}

std::string find_cache(const std::string& folder) {
  if (exists(folder + "/tokenizer.json")) return folder;
  std::vector<std::string> found;
  if (DIR* open = ::opendir(folder.c_str())) {
    while (const dirent* entry = ::readdir(open)) {
      const std::string inner = folder + "/" + entry->d_name;
      if (entry->d_name[0] != '.' && exists(inner + "/tokenizer.json")) found.push_back(inner);
    }
    ::closedir(open);
  }
  if (found.empty())
    fail("--data_cache " + folder + ": no token cache there; examples/gpt/train.py --cache_dir makes it");
  if (found.size() > 1) {
    fail("--data_cache " + folder + ": " + std::to_string(found.size()) +
         " token caches there; name one of them, for instance " + *std::min_element(found.begin(), found.end()));
  }
  return found.front();
}

int64_t vocabulary_of(const std::string& path) {
  const auto json = nlohmann::json::parse(std::ifstream(path), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.contains("/model/vocab"_json_pointer)) fail(path + " is not a tokenizer's file");
  std::set<std::string> words;
  for (const auto& [word, id] : json["model"]["vocab"].items()) words.insert(word);
  for (const auto& token : json.value("added_tokens", nlohmann::json::array()))
    words.insert(token.value("content", ""));
  return static_cast<int64_t>(words.size());
}

void check_length(const at::Tensor& tokens, int64_t block_size, const std::string& part) {
  if (tokens.numel() >= block_size + 2) return;
  fail("the " + part + " part has " + std::to_string(tokens.numel()) + " tokens, fewer than block_size + 2 = " +
       std::to_string(block_size + 2) + ": give more text or a smaller --block_size");
}

Batch windows_at(const at::Tensor& tokens, const at::Tensor& starts, int64_t block_size) {
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < starts.numel(); ++i) {
    rows.push_back(tokens.narrow(0, starts[i].item<int64_t>(), block_size + 1).to(at::kLong));
  }
  const at::Tensor both = at::stack(rows);
  return {both.narrow(1, 0, block_size).contiguous(), both.narrow(1, 1, block_size).contiguous()};
}

}  // namespace

at::Tensor read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string start(10, '\0');
  file.read(start.data(), 10);
  if (!file.good() || start.compare(0, 6, "\x93NUMPY") != 0) fail(path + " is missing or not a NumPy file");
  uint64_t length = static_cast<uint8_t>(start[8]) | static_cast<uint8_t>(start[9]) << 8;
  if (start[6] > 1) {  // later versions have a 4-byte length
    std::string more(2, '\0');
    file.read(more.data(), 2);
    length |= static_cast<uint64_t>(static_cast<uint8_t>(more[0])) << 16 |
              static_cast<uint64_t>(static_cast<uint8_t>(more[1])) << 24;
  }
  if (length > 65536) fail(path + " has an impossible header");
  std::string header(length, '\0');
  file.read(header.data(), static_cast<std::streamsize>(length));
  const bool narrow = header.find("'<u2'") != std::string::npos;
  const size_t shape = header.find("'shape': (");
  if (!file.good() || shape == std::string::npos || (!narrow && header.find("'<u4'") == std::string::npos)) {
    fail(path + " is not a 1-D array of uint16 or uint32");
  }
  const int64_t count = std::strtoll(header.c_str() + shape + 10, nullptr, 10);
  const auto begin = file.tellg();
  file.seekg(0, std::ios::end);
  const int64_t bytes = file.tellg() - begin;
  if (count < 0 || bytes != count * (narrow ? 2 : 4))
    fail(path + " is cut off: its header names " + std::to_string(count) + " tokens");
  file.seekg(begin);
  const at::Tensor tokens = at::empty({count}, narrow ? at::kUInt16 : at::kUInt32);
  file.read(static_cast<char*>(tokens.data_ptr()), bytes);
  if (!file.good()) fail("cannot read " + path);
  return tokens;
}

TextData load_text(const std::string& folder) {
  const std::string cache = find_cache(folder);
  return {read_npy(cache + "/train.npy"), read_npy(cache + "/held_out.npy"), vocabulary_of(cache + "/tokenizer.json")};
}

TrainingWindows::TrainingWindows(at::Tensor tokens, int64_t block_size, int64_t batch_size, int64_t seed, int rank)
    : tokens_(std::move(tokens)), block_size_(block_size), batch_size_(batch_size), seed_(seed), rank_(rank) {
  check_length(tokens_, block_size, "training");
}

Batch TrainingWindows::batch(int64_t micro_step) const {
  const auto digest = sha256(std::to_string(seed_) + "/" + std::to_string(rank_) + "/" + std::to_string(micro_step));
  uint64_t seed = 0;
  for (int i = 6; i >= 0; --i) seed = seed << 8 | digest[i];
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const int64_t last = tokens_.numel() - block_size_ - 1;
  return windows_at(tokens_, at::randint(0, last + 1, {batch_size_}, generator, at::kLong), block_size_);
}

EvaluationWindows::EvaluationWindows(at::Tensor tokens, int64_t block_size, int64_t batch_size, int64_t count, int rank,
                                     int ranks)
    : tokens_(std::move(tokens)), block_size_(block_size) {
  check_length(tokens_, block_size, "held-out");
  const int64_t last = tokens_.numel() - block_size - 1;
  const at::Tensor starts =
      at::linspace(0, static_cast<double>(last), std::min(count, last + 1), at::kFloat).to(at::kLong);
  const std::vector<at::Tensor> batches = starts.split(batch_size);
  const auto total = static_cast<int64_t>(batches.size());
  for (int64_t round = 0; round < (total + ranks - 1) / ranks; ++round) {
    const int64_t index = round * ranks + rank;
    starts_.push_back(batches[std::min(index, total - 1)]);
    weights_.push_back(index < total ? batches[index].numel() : 0);
  }
}

Batch EvaluationWindows::batch(int64_t index) const {
  return windows_at(tokens_, starts_.at(index), block_size_);
}
