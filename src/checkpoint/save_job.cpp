#include "checkpoint/save_job.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "base/error.h"
#include "base/shape.h"
#include "base/thread_team.h"
#include "checkpoint/torch_archive.h"

namespace deepscale {
namespace {

const std::map<std::string, std::string> kMetadata = {{"format", "pt"}, {"written_by", "deepscale"}};

/// Slices of one kind (masters, one of the states: what stands before the first slash) behind each other, so that one
/// kind is read in long runs. What is loaded while it is written keeps its order.
void order_by_kind(std::vector<SavedSlice>& slices) {
  if (!std::all_of(slices.begin(), slices.end(), [](const SavedSlice& slice) { return slice.in_memory; })) return;
  const auto kind_of = [](const SavedSlice& slice) { return slice.name.substr(0, slice.name.find('/')); };
  std::map<std::string, size_t> places;
  for (const SavedSlice& slice : slices) places.emplace(kind_of(slice), places.size());
  std::stable_sort(slices.begin(), slices.end(), [&](const SavedSlice& left, const SavedSlice& right) {
    return places[kind_of(left)] < places[kind_of(right)];
  });
}

}  // namespace

SaveJob::SaveJob(SavePlan plan, std::vector<SavedSlice> slices, std::vector<SavedArchive> archives)
    : plan_(std::move(plan)),
      folder_(saving_folder(plan_.save_dir, plan_.tag)),
      slices_(std::move(slices)),
      archives_(std::move(archives)) {
  order_by_kind(slices_);
  plan_.commit.cancelled = &cancelled_;
}

SaveJob::~SaveJob() {
  if (thread_.joinable()) thread_.join();
}

void SaveJob::cancel() noexcept {
  cancelled_ = true;
  if (thread_.joinable()) thread_.join();
}

std::vector<ShardItem> SaveJob::items() const {
  std::vector<ShardItem> items;
  for (const SavedSlice& slice : slices_) {
    // A whole tensor keeps its shape, so that other programs find it as it is.
    const bool whole = slice.offset == 0 && slice.numel == numel_of(slice.shape);
    items.push_back({slice.name, slice.dtype, whole ? slice.shape : std::vector<int64_t>{slice.numel}, slice.data,
                     slice.in_memory});
  }
  return items;
}

/// The other ranks wait for this one's part: what keeps it from coming is said in the folder.
template <typename Work>
void SaveJob::reporting(const Work& work) {
  try {
    work();
  } catch (const std::exception& error) {
    fail_part(folder_, plan_.rank, error.what());
    throw;
  }
}

/// The files' bytes, from the tensors or from the image.
void SaveJob::write_files(int threads) {
  FileChecksums tensors;
  std::mutex mutex;
  std::exception_ptr first;
  // Beside tensors, archives are small: they are on the disk before the tensors are.
  run_team(slices_.empty() ? 1 : 2, [&](int64_t worker) {
    try {
      if (worker == 0 && !slices_.empty()) {
        tensors = write_tensors(threads);
      } else {
        write_archives(slices_.empty() ? threads : 1, slices_.empty() ? plan_.memory.get() : nullptr);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
      cancelled_ = true;  // the other one stops; what it says then follows from this
    }
  });
  if (first) std::rethrow_exception(first);
  if (!slices_.empty()) written_.push_back({plan_.tensor_file, std::move(tensors)});
}

void SaveJob::write_archives(int threads, KeptMemory* memory) {
  for (SavedArchive& archive : archives_) {
    ZipStream stream(kTorchFolder, std::move(archive.members));
    written_.push_back({archive.name, write_zip(folder_ + "/" + archive.name, stream,
                                                {.threads = threads, .cancelled = &cancelled_, .memory = memory})});
  }
}

FileChecksums SaveJob::write_tensors(int threads) {
  const std::string path = folder_ + "/" + plan_.tensor_file;
  if (image_ != nullptr) return image_->write(path, &cancelled_);
  const ShardStream stream(items(), kMetadata);
  for (size_t i = 0; i < slices_.size(); ++i) begins_.push_back(stream.begin_of(static_cast<int>(i)));
  return write_shard(path, stream, {.threads = threads, .cancelled = &cancelled_, .memory = plan_.memory.get()});
}

void SaveJob::finish() {
  Manifest part;
  part.layout = plan_.layout;
  part.tag = plan_.tag;
  part.files = written_;
  const int file = static_cast<int>(part.files.size()) - 1;
  for (size_t i = 0; i < slices_.size(); ++i) {
    const SavedSlice& slice = slices_[i];
    part.tensors.push_back({slice.name, slice.dtype, slice.shape, {{file, begins_[i], slice.offset, slice.numel}}});
  }
  finish_part(folder_, plan_.rank, part);
}

void SaveJob::commit() {
  if (plan_.commits) commit_save(plan_.save_dir, plan_.tag, plan_.commit);
}

void SaveJob::run() {
  write_part();
  commit();
}

void SaveJob::write_part() {
  reporting([&] {
    write_files(plan_.threads);
    finish();
  });
}

void SaveJob::take_snapshot(std::shared_ptr<ShardImage> image, int threads) {
  image_ = std::move(image);
  std::vector<BytePart*> parts;
  for (SavedArchive& archive : archives_) {
    for (ZipMember& member : archive.members) {
      for (BytePart& part : member.parts) parts.push_back(&part);
    }
  }
  reporting([&] {
    image_->take(slices_.empty() ? std::vector<ShardItem>() : items(), kMetadata, threads, parts);
    for (size_t i = 0; i < slices_.size(); ++i) begins_.push_back(image_->begin_of(static_cast<int>(i)));
  });
  for (SavedSlice& slice : slices_) slice.data = nullptr;  // what they belong to may go now
}

void SaveJob::write_part_of_image() {
  try {
    reporting([&] {
      write_files(1);  // the other threads train
      finish();
    });
  } catch (...) {
    part_.set_exception(std::current_exception());
    throw;
  }
  part_.set_value();
}

void SaveJob::wait_for_part() {
  part_written_.get();
}

void SaveJob::start() {
  DS_CHECK(image_ != nullptr && !thread_.joinable(), "a save in the background starts once, from a snapshot");
  thread_ = std::thread([this] {
    try {
      write_part_of_image();
      commit();
    } catch (...) {
      error_ = std::current_exception();
    }
    done_ = true;
  });
}

void SaveJob::wait() {
  if (thread_.joinable()) thread_.join();
  if (error_) std::rethrow_exception(error_);
}

}  // namespace deepscale
