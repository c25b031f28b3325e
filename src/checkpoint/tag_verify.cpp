#include "checkpoint/tag_verify.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>

#include "base/error.h"
#include "base/thread_team.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_source.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/verified_file.h"
#include "platform/files.h"

namespace deepscale {
namespace {

constexpr int64_t kJobBytes = 256 * kChunkBytes;  // large files are read by several threads

/// Calls work(0) to work(count - 1) by several threads.
template <typename Work>
void in_parallel(int64_t count, int threads, const Work& work) {
  std::atomic<int64_t> next = 0;
  const auto take = [&] {
    for (int64_t job = next++; job < count; job = next++) work(job);
  };
  run_team(std::clamp<int64_t>(threads, 1, std::max<int64_t>(count, 1)), [&](int64_t) { take(); });
}

void join_lines(std::vector<std::string>& lines, std::vector<std::string> more) {
  lines.insert(lines.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

/// Every block of every file against the manifest. Lines by file, in the manifest's order.
void verify_blocks(const std::string& folder, const Manifest& manifest, const VerifyOptions& options,
                   std::vector<std::string>& problems) {
  struct Job {
    size_t file;
    int64_t first, count;
  };
  std::vector<Job> jobs;
  for (size_t f = 0; f < manifest.files.size(); ++f) {
    const int64_t blocks = manifest.files[f].checksums.count();
    const int64_t most = kJobBytes / manifest.files[f].checksums.block_bytes;
    jobs.push_back({f, 0, std::min(blocks, most)});  // also for an empty file: it must be there
    for (int64_t b = most; b < blocks; b += most) jobs.push_back({f, b, std::min(most, blocks - b)});
  }
  std::mutex mutex;
  std::vector<std::set<int64_t>> damaged(manifest.files.size());
  std::vector<std::string> unreadable(manifest.files.size());
  in_parallel(static_cast<int64_t>(jobs.size()), options.threads, [&](int64_t j) {
    const Job& job = jobs[j];
    try {
      const auto found =
          damaged_blocks(folder, manifest.files[job.file], job.first, job.count, options.read, kOneOfSeveral);
      const std::lock_guard lock(mutex);
      damaged[job.file].insert(found.begin(), found.end());
    } catch (const std::exception& error) {
      const std::lock_guard lock(mutex);
      if (unreadable[job.file].empty()) unreadable[job.file] = error.what();
    }
  });
  for (size_t f = 0; f < manifest.files.size(); ++f) {
    const auto is_known = [&](const std::string& problem) { return problem.starts_with(unreadable[f]); };
    if (!unreadable[f].empty() && std::none_of(problems.begin(), problems.end(), is_known)) {
      problems.push_back(unreadable[f]);
    }
    join_lines(problems, damage_lines(folder, manifest.files[f], {damaged[f].begin(), damaged[f].end()}));
  }
}

struct ListedSlice {
  const ManifestTensor* tensor;
  const ManifestSlice* slice;
};

/// That other programs find in a tensor file what the manifest says of it; empty when they do.
std::string header_problem(const std::string& folder, const ManifestFile& file,
                           const std::vector<ListedSlice>& listed) {
  try {
    const auto opened = SafetensorsFile::open(folder + "/" + file.name);
    int64_t data_begin = file.checksums.bytes;
    if (!opened.header().entries.empty()) data_begin -= opened.header().entries.back().end;
    for (const auto& [tensor, slice] : listed) {
      const SafetensorsEntry* const entry = opened.find(tensor->name);
      const bool same = entry != nullptr && entry->dtype == tensor->dtype &&
                        entry->begin + data_begin == slice->begin &&
                        entry->end - entry->begin == slice->numel * size_of(tensor->dtype);
      DS_CHECK_AS(CheckpointError, same,
                  "checkpoint {}: the manifest has tensor {} at byte {} of {}, whose own header has not", folder,
                  tensor->name, slice->begin, file.name);
    }
    DS_CHECK_AS(CheckpointError, listed.size() == opened.header().entries.size(),
                "checkpoint {}: the file {} holds {} tensors, the manifest lists {} of them", folder, file.name,
                opened.header().entries.size(), listed.size());
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void verify_headers(const std::string& folder, const Manifest& manifest, std::vector<std::string>& problems) {
  std::vector<std::vector<ListedSlice>> listed(manifest.files.size());
  for (const ManifestTensor& tensor : manifest.tensors) {
    for (const ManifestSlice& slice : tensor.slices) listed[slice.file].push_back({&tensor, &slice});
  }
  for (size_t f = 0; f < manifest.files.size(); ++f) {
    if (!manifest.files[f].name.ends_with(".safetensors")) continue;
    std::string problem = header_problem(folder, manifest.files[f], listed[f]);
    if (!problem.empty()) problems.push_back(std::move(problem));
  }
}

void note_other_files(const std::string& folder, const Manifest& manifest, VerifyReport& report) {
  std::set<std::string> known = {kManifestName};
  for (const ManifestFile& file : manifest.files) known.insert(file.name);
  for (const std::string& name : list_directory(folder)) {
    if (!known.contains(name)) report.notes.push_back(fmt::format("{} does not belong to this checkpoint", name));
  }
}

void verify_with_manifest(const std::string& folder, const VerifyOptions& options, VerifyReport& report) {
  const Manifest manifest = read_manifest(folder);  // checks that slices cover their tensors exactly
  report.files = static_cast<int64_t>(manifest.files.size());
  report.tensors = static_cast<int64_t>(manifest.tensors.size());
  report.bytes = manifest.bytes();
  report.problems = missing_files(folder, manifest);
  verify_blocks(folder, manifest, options, report.problems);
  if (report.problems.empty()) verify_headers(folder, manifest, report.problems);  // else the reason is known
  note_other_files(folder, manifest, report);
}

// ---------------------------------------------------------------- without a manifest
/// Paths of files below a folder.
void collect_files(const std::string& folder, std::vector<std::string>& paths) {
  for (const std::string& name : list_directory(folder)) {
    const std::string path = folder + "/" + name;
    if (is_directory(path)) {
      collect_files(path, paths);
    } else {
      paths.push_back(path);
    }
  }
}

std::vector<std::string> verify_archive(const std::string& path, const VerifyOptions& options) {
  try {
    auto archive = TorchArchive::open(path);
    std::vector<std::string> lines;
    for (const std::string& part : archive.damaged_parts(options.read)) {
      lines.push_back(
          fmt::format("checkpoint file {} is damaged: its part \"{}\" does not have its checksum", path, part));
    }
    return lines;
  } catch (const std::exception& error) {
    return {error.what()};
  }
}

/// Whether files of ranks are missing, and whether tensors have the sizes that the model file says.
void check_structure(const std::string& folder, VerifyReport& report) {
  try {
    report.tensors = static_cast<int64_t>(TensorSource::open(folder)->tensors().size());
  } catch (const UnsupportedError& error) {
    report.notes.push_back(fmt::format("{}: each file was checked, whether some are missing was not", error.what()));
  } catch (const Error& error) {
    report.problems.emplace_back(error.what());
  }
}

void verify_files_alone(const std::string& folder, const VerifyOptions& options, VerifyReport& report) {
  std::vector<std::string> paths;
  if (is_directory(folder)) {
    collect_files(folder, paths);
  } else {
    paths.push_back(folder);
  }
  std::vector<std::vector<std::string>> problems(paths.size());
  std::atomic<int64_t> archives = 0, headers = 0;
  in_parallel(static_cast<int64_t>(paths.size()), options.threads, [&](int64_t i) {
    if (paths[i].ends_with(".pt")) {
      ++archives;
      problems[i] = verify_archive(paths[i], options);
    } else if (paths[i].ends_with(".safetensors")) {
      ++headers;
      try {
        (void)SafetensorsFile::open(paths[i]);
      } catch (const std::exception& error) {
        problems[i] = {error.what()};
      }
    }
  });
  for (auto& lines : problems) join_lines(report.problems, std::move(lines));
  for (const std::string& path : paths) {
    if (path.ends_with(".pt")) report.bytes += file_size(path).value_or(0);
  }
  report.files = archives + headers;
  if (report.problems.empty()) check_structure(folder, report);  // else the reason is known
  if (archives > 0) {
    report.notes.push_back(
        "there is no manifest: the files' own CRC-32 were compared; whether all of them are of one save cannot be "
        "known");
  }
  if (headers > 0) report.notes.push_back("safetensors files have no checksums: only their headers could be checked");
}

}  // namespace

int64_t bytes_to_verify(const std::string& folder) {
  try {
    if (file_size(folder + "/" + kManifestName)) return read_manifest(folder).bytes();
  } catch (const Error&) {
    return 0;
  }
  std::vector<std::string> paths;
  collect_files(folder, paths);
  int64_t bytes = 0;
  for (const std::string& path : paths) {
    if (path.ends_with(".pt")) bytes += file_size(path).value_or(0);
  }
  return bytes;
}

VerifyReport verify_checkpoint(const std::string& folder, const VerifyOptions& options) {
  VerifyReport report;
  report.kind = checkpoint_kind(folder);
  DS_CHECK_AS(CheckpointError, report.kind != CheckpointKind::kNone, "{} holds no checkpoint", folder);
  report.has_manifest = file_size(folder + "/" + kManifestName).has_value();
  try {
    if (report.has_manifest) {
      verify_with_manifest(folder, options, report);
    } else if (report.kind == CheckpointKind::kNative) {
      report.problems.push_back(fmt::format("checkpoint {}: the file {} is missing", folder, kManifestName));
    } else {
      verify_files_alone(folder, options, report);
    }
  } catch (const Error& error) {
    report.problems.emplace_back(error.what());
  }
  return report;
}

}  // namespace deepscale
