// How a checkpoint comes to be, so that at every moment a reader finds the old one or the whole new one:
//
// 1. One rank makes the folder SAVE_DIR/.TAG.saving; all ranks write their files into it.
// 2. Each rank, when its files are on the disk, leaves part_R there, its part of the manifest, or failed_R, why not.
// 3. One rank, when it has all parts, writes manifest.json, the last of all files,
// 4. gives the folder its name, SAVE_DIR/TAG; where there is one of that name, the two exchange names,
// 5. and writes SAVE_DIR/latest.
//
// Ranks that have no folder in common (Ray's workers) do all this in each of their folders, where the manifest is the
// same: brought together, their files are one checkpoint.
//
// Ranks meet through the file system alone, so a thread of each can do this beside training. Everything is brought to
// the disk before the next step. What a killed run leaves has a dot in front, and goes with the next save of the tag,
// or with any save when an hour has passed. Torch-free.
#pragma once

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"

namespace deepscale {

/// Throws ConfigError for a tag that is no name of a folder: empty, "." or "..", with a path, or with a dot in front;
/// and for "latest", which is a file's name.
void check_tag_name(const std::string& tag);

/// A file system that cannot exchange names (NFS) has neither TAG nor its successor for a moment, but the old one as
/// .TAG.replaced: where a killed run left it so, it gets its name back. By one rank, before SAVE_DIR is read or
/// written. Throws IoError.
void restore_replaced(const std::string& save_dir);

/// Removes what saves left behind that were killed: folders in which nothing has changed for `age` at least.
void remove_abandoned(const std::string& save_dir, std::chrono::seconds age);

/// Makes the folder for a save, empty, and those above it. By one rank. Returns its path. Throws IoError.
std::string begin_save(const std::string& save_dir, const std::string& tag);
[[nodiscard]] std::string saving_folder(const std::string& save_dir, const std::string& tag);

/// A rank is ready: its files are in the folder and on the disk.
void finish_part(const std::string& folder, int rank, const Manifest& part);
/// A rank's part as text, for ranks elsewhere, which put it into their folder. Throw IoError.
[[nodiscard]] std::string read_part(const std::string& folder, int rank);
void put_part(const std::string& folder, int rank, const std::string& text);
/// A rank has failed; commit_save() of the other rank throws with this text.
void fail_part(const std::string& folder, int rank, const std::string& reason) noexcept;

struct CommitOptions {
  int ranks = 1;
  std::string info = "{}";  ///< JSON object for the manifest
  bool write_latest = true;
  /// Where `latest` stands when that is not SAVE_DIR: a folder above it, and the tag's path from there.
  std::string latest_dir = {}, latest_text = {};
  /// After this save, older checkpoints beyond so many are removed, but never one that `latest` names; 0: none are.
  int keep_last = 0;
  std::chrono::milliseconds patience{std::chrono::minutes(30)};  ///< for the slowest rank
  /// Ranks whose files are in folders of their own, to be brought together afterwards; their parts are copied here.
  std::vector<int> elsewhere = {};
  const std::atomic<bool>* cancelled = nullptr;
};

/// By one rank: waits for all parts, and makes the checkpoint valid; then removes what is to go, as far as the system
/// lets it. Throws CheckpointError when a rank failed or is not heard of in time, IoError; nothing has changed then for
/// readers, except that TAG is the new checkpoint already where only `latest` could not be written.
void commit_save(const std::string& save_dir, const std::string& tag, const CommitOptions& options);

/// After a save that failed: removes its folder; files of others in it go to the checkpoint.
void abandon_save(const std::string& save_dir, const std::string& tag);

/// Writes SAVE_DIR/latest so that readers see the old or the new text.
void write_latest(const std::string& save_dir, const std::string& tag);
/// The text of SAVE_DIR/latest: a tag, or a path to one. Empty when it is damaged: when it has control characters, or
/// more than one line. Nothing when there is no such file.
[[nodiscard]] std::optional<std::string> read_latest(const std::string& save_dir);

struct TagFacts {
  std::string tag;
  double saved_at = 0.0;  ///< seconds since 1970
  std::string problem;    ///< why its manifest cannot be used; empty when it can
  Manifest manifest;      ///< when it can
};
/// Folders of SAVE_DIR with a manifest, newest first. Only manifests and sizes are looked at.
[[nodiscard]] std::vector<TagFacts> list_tags(const std::string& save_dir);

/// What is wrong with a checkpoint, a line each; empty when it is intact. deep: every byte is read;
/// loads_next: in the way that is best for who loads the files afterwards.
[[nodiscard]] std::vector<std::string> verify_tag(const std::string& folder, bool deep, int threads = 1,
                                                  bool loads_next = false);

}  // namespace deepscale
