// How a checkpoint comes to be, so that at every moment a reader finds the old one or the whole new one:
//
//   SAVE_DIR/.TAG.saving/           made by one rank; all ranks write their files into it
//   SAVE_DIR/.TAG.saving/part_R     each rank when its files are on the disk: its part of the manifest, or why it
//   failed SAVE_DIR/.TAG.saving/manifest.json      one rank, when it has all parts; last of all files SAVE_DIR/TAG/ by
//   renaming; where there was one, by exchanging names SAVE_DIR/latest                 after that
//
// Ranks meet through the file system alone, so a thread of each can do this beside training. Everything is brought to
// the disk before the next step. What a killed run leaves is a folder with a dot, which the next save of the tag
// removes. Torch-free.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"

namespace deepscale {

/// Throws ConfigError for a tag that is no name of a folder: empty, "." or "..", with a path, or with a dot in front.
void check_tag_name(const std::string& tag);

/// Makes the folder for a save, empty, and those above it. By one rank. Returns its path. Throws IoError.
std::string begin_save(const std::string& save_dir, const std::string& tag);
[[nodiscard]] std::string saving_folder(const std::string& save_dir, const std::string& tag);

/// A rank is ready: its files are in the folder and on the disk.
void finish_part(const std::string& folder, int rank, const Manifest& part);
/// A rank has failed; commit_save() of the other rank throws with this text.
void fail_part(const std::string& folder, int rank, const std::string& reason) noexcept;

struct CommitOptions {
  int ranks = 1;
  std::string info = "{}";  ///< JSON object for the manifest
  bool write_latest = true;
  int keep_last = 0;  ///< after this save, older checkpoints beyond so many are removed; 0: none are
  std::chrono::milliseconds patience{std::chrono::minutes(30)};  ///< for the slowest rank
  const std::atomic<bool>* cancelled = nullptr;
};

/// By one rank: waits for all parts, and makes the checkpoint valid. Throws CheckpointError when a rank failed or is
/// not heard of in time, IoError; nothing has changed then for readers.
void commit_save(const std::string& save_dir, const std::string& tag, const CommitOptions& options);

/// Writes SAVE_DIR/latest so that readers see the old or the new text.
void write_latest(const std::string& save_dir, const std::string& tag);

struct TagFacts {
  std::string tag;
  double saved_at = 0.0;  ///< seconds since 1970
  std::string problem;    ///< why its manifest cannot be used; empty when it can
  Manifest manifest;      ///< when it can
};
/// Folders of SAVE_DIR with a manifest, newest first. Only manifests and sizes are looked at.
[[nodiscard]] std::vector<TagFacts> list_tags(const std::string& save_dir);

/// What is wrong with a checkpoint, a line each; empty when it is intact. deep: every byte is read.
[[nodiscard]] std::vector<std::string> verify_tag(const std::string& folder, bool deep);

}  // namespace deepscale
