// One rank's work in saving a checkpoint: its tensors into one file, archives of torch.save's format, checksums, its
// part of the manifest, and on one rank making the checkpoint valid (tag_folder.h). In the caller's thread, or beside
// training from a copy of the tensors. Torch-free.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/shard_writer.h"
#include "checkpoint/tag_folder.h"
#include "checkpoint/zip_stream.h"

namespace deepscale {

/// Elements [offset, offset + numel) of a flattened tensor, which this rank writes.
struct SavedSlice {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;  ///< of the whole tensor
  int64_t offset = 0;
  int64_t numel = 0;
  std::function<std::shared_ptr<const void>()> data;  ///< as in ShardItem, like
  bool in_memory = false;
};

/// A file of torch.save's format, or any other archive of members in the folder kTorchFolder.
struct SavedArchive {
  std::string name;
  std::vector<ZipMember> members;
};

struct SavePlan {
  std::string save_dir;
  std::string tag;  ///< begin_save() has made its folder
  std::string layout = "native";
  int rank = 0;
  std::string tensor_file;             ///< name of this rank's file; made when it has slices
  int threads = 1;                     ///< that copy and sum what write_part() writes
  std::shared_ptr<KeptMemory> memory;  ///< that write_part() fills for the disk, kept for the next save; or null
  bool commits = false;                ///< this rank makes the checkpoint valid, with `commit`
  CommitOptions commit;
};

class SaveJob {
 public:
  SaveJob(SavePlan plan, std::vector<SavedSlice> slices, std::vector<SavedArchive> archives = {});
  SaveJob(const SaveJob&) = delete;
  SaveJob& operator=(const SaveJob&) = delete;
  /// Waits for what start() began, which the program's end must not take away.
  ~SaveJob();

  /// Does everything in this thread. Throws IoError and CheckpointError; other ranks learn of it through the folder,
  /// where the disk still takes a note. Ranks that can talk call the two halves, and agree between them.
  void run();
  /// This rank's files and its part of the manifest, in this thread. Throws as run().
  void write_part();
  /// On the rank that commits: waits for all parts and makes the checkpoint valid. Nothing on the others.
  void commit();
  /// Copies slices and archives into `image`, which serves one job at a time. Failure is for all ranks, as in run().
  void take_snapshot(std::shared_ptr<ShardImage> image, int threads);
  /// Does the rest in a thread of its own. Requires: take_snapshot().
  void start();
  [[nodiscard]] bool done() const { return done_; }
  /// Until what start() began has done what write_part() does; throws what went wrong. Requires: start().
  void wait_for_part();
  /// Ends what start() began, at the latest after the block that it writes; for a rank that heard of another's failure.
  void cancel() noexcept;
  /// Until start()'s work is over; throws what went wrong, every time.
  void wait();

 private:
  [[nodiscard]] std::vector<ShardItem> items() const;
  template <typename Work>
  void reporting(const Work& work);
  void write_files(int threads);
  void write_archives(int threads, KeptMemory* memory);
  FileChecksums write_tensors(int threads);
  void finish();
  void write_part_of_image();

  SavePlan plan_;
  std::string folder_;
  std::vector<SavedSlice> slices_;
  std::vector<SavedArchive> archives_;
  std::vector<ManifestFile> written_;  ///< the archives, then the slices' file
  std::vector<int64_t> begins_;
  std::shared_ptr<ShardImage> image_;
  std::atomic<bool> cancelled_ = false;
  std::atomic<bool> done_ = false;
  std::exception_ptr error_;
  std::promise<void> part_;
  std::shared_future<void> part_written_ = part_.get_future().share();
  std::thread thread_;
};

}  // namespace deepscale
