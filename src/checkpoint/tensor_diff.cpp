#include "checkpoint/tensor_diff.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>

#include "checkpoint/elements.h"
#include "checkpoint/tensor_windows.h"

namespace deepscale {
namespace {

using Places = std::map<std::string, int>;  // key of a tensor -> its index

/// A weight by its name in the model, also an alias; everything else by the name in the checkpoint.
std::string key_of(const SourceTensor& tensor) {
  return tensor.weight.empty() ? "state " + tensor.name : "weight " + tensor.weight;
}

Places places_of(const TensorSource& source, const DiffOptions& options) {
  Places places;
  for (size_t t = 0; t < source.tensors().size(); ++t) {
    const SourceTensor& tensor = source.tensors()[t];
    if (options.weights_only && tensor.weight.empty()) continue;
    if (options.wanted && !options.wanted(tensor.name)) continue;
    places[key_of(tensor)] = static_cast<int>(t);
  }
  return places;
}

/// Where the other one stores a weight under another of its names.
Places::const_iterator find_in(const Places& places, const std::string& key, const TensorSource& source,
                               const TensorSource& other) {
  const auto found = places.find(key);
  if (found != places.end() || !key.starts_with("weight ")) return found;
  const std::string name = key.substr(7);
  if (const auto alias = source.aliases().find(name); alias != source.aliases().end()) {
    return places.find("weight " + alias->second);
  }
  for (const auto& [alias, stored] : other.aliases()) {
    if (stored != name) continue;
    if (const auto under = places.find("weight " + alias); under != places.end()) return under;
  }
  return places.end();
}

struct Pair {
  int first, second;
  TensorDifference result;
};

/// Elements that are looked at together: most are equal.
constexpr int64_t kChunk = 4096;

void compare_chunk(const TensorPiece& a, DType a_dtype, const TensorPiece& b, DType b_dtype, TensorDifference& found) {
  const bool same_dtype = a_dtype == b_dtype;
  const auto element = static_cast<size_t>(size_of(a_dtype));
  if (same_dtype && std::memcmp(a.data, b.data, element * a.numel) == 0) return;
  std::array<double, kChunk> left, right;
  to_fp64(a.data, a_dtype, a.numel, left.data());
  to_fp64(b.data, b_dtype, b.numel, right.data());
  for (int64_t i = 0; i < a.numel; ++i) {
    const bool same =
        same_dtype ? std::memcmp(a.data + element * i, b.data + element * i, element) == 0 : left[i] == right[i];
    if (same) continue;
    if (found.different++ == 0) found.first_different = a.offset + i;
    const double distance = std::fabs(left[i] - right[i]);
    if (std::isnan(distance)) {
      ++found.not_numbers;
    } else {
      found.largest = std::max(found.largest, distance);
    }
  }
}

void compare_piece(const TensorPiece& a, DType a_dtype, const TensorPiece& b, DType b_dtype, TensorDifference& found) {
  for (int64_t done = 0; done < a.numel; done += kChunk) {
    const auto chunk = [&](const TensorPiece& piece, DType dtype) {
      return TensorPiece{piece.tensor, piece.offset + done, std::min(kChunk, piece.numel - done),
                         piece.data + done * size_of(dtype)};
    };
    compare_chunk(chunk(a, a_dtype), a_dtype, chunk(b, b_dtype), b_dtype, found);
  }
}

/// Reads both sides of all pairs in windows of the same lengths.
void compare_values(TensorSource& first, TensorSource& second, std::vector<Pair>& pairs, const DiffOptions& options) {
  std::vector<SourceRange> left, right;
  for (const Pair& pair : pairs) {
    left.push_back({pair.first, 0, first.tensors()[pair.first].numel(), nullptr});
    right.push_back({pair.second, 0, left.back().numel, nullptr});
  }
  TensorWindows a(first, left), b(second, right);
  size_t pair = 0;
  while (true) {
    const auto &mine = a.next(), &other = b.next();
    if (mine.empty()) return;
    for (size_t i = 0; i < mine.size(); ++i) {
      while (pairs[pair].first != mine[i].tensor) ++pair;
      const DType a_dtype = first.tensors()[mine[i].tensor].dtype, b_dtype = second.tensors()[other[i].tensor].dtype;
      compare_piece(mine[i], a_dtype, other[i], b_dtype, pairs[pair].result);
      if (options.read) options.read(mine[i].numel * size_of(a_dtype));
    }
  }
}

}  // namespace

DiffReport compare_tensors(TensorSource& first, TensorSource& second, const DiffOptions& options) {
  DiffReport report;
  const Places in_first = places_of(first, options), in_second = places_of(second, options);
  std::vector<Pair> pairs;
  std::vector<bool> met(second.tensors().size(), false);
  for (int t = 0; t < static_cast<int>(first.tensors().size()); ++t) {
    const SourceTensor& mine = first.tensors()[t];
    const auto own = in_first.find(key_of(mine));
    if (own == in_first.end() || own->second != t) continue;
    const auto found = find_in(in_second, own->first, second, first);
    if (found == in_second.end()) {
      report.differences.push_back({.name = mine.name, .what = "only in the first"});
      continue;
    }
    met[found->second] = true;
    ++report.compared;
    const SourceTensor& other = second.tensors()[found->second];
    if (mine.shape != other.shape) {
      report.differences.push_back(
          {.name = mine.name,
           .what = fmt::format("shape [{}], [{}]", fmt::join(mine.shape, ", "), fmt::join(other.shape, ", "))});
      continue;
    }
    Pair pair{t, found->second, {.name = mine.name, .what = {}, .numel = mine.numel()}};
    if (mine.dtype != other.dtype)
      pair.result.what = fmt::format("dtype {}, {}", name_of(mine.dtype), name_of(other.dtype));
    pairs.push_back(std::move(pair));
  }
  for (const auto& [key, t] : in_second) {
    const bool alias_of_first = find_in(in_first, key, first, second) != in_first.end();
    if (!met[t] && !alias_of_first) {
      report.differences.push_back({.name = second.tensors()[t].name, .what = "only in the second"});
    }
  }
  compare_values(first, second, pairs, options);
  for (Pair& pair : pairs) {
    if (pair.result.what.empty() && pair.result.different == 0) {
      ++report.identical;
    } else {
      report.differences.push_back(std::move(pair.result));
    }
  }
  return report;
}

}  // namespace deepscale
