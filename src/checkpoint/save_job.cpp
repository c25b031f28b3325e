#include "checkpoint/save_job.h"

#include "base/error.h"
#include "base/shape.h"
#include "platform/files.h"

namespace deepscale {
namespace {

const std::map<std::string, std::string> kMetadata = {{"format", "pt"}, {"written_by", "deepscale"}};

}  // namespace

SaveJob::SaveJob(SavePlan plan, std::vector<SavedSlice> slices)
    : plan_(std::move(plan)), folder_(saving_folder(plan_.save_dir, plan_.tag)), slices_(std::move(slices)) {
  plan_.commit.cancelled = &cancelled_;
}

SaveJob::~SaveJob() {
  cancel();
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
    items.push_back({slice.name, slice.dtype, whole ? slice.shape : std::vector<int64_t>{slice.numel}, slice.data});
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

void SaveJob::finish(const FileChecksums* tensors) {
  reporting([&] {
    Manifest part;
    part.layout = plan_.layout;
    part.tag = plan_.tag;
    for (const std::string& name : plan_.other_files) {
      part.files.push_back({name, checksums_of_file(folder_ + "/" + name)});
      sync_file(folder_ + "/" + name);
    }
    if (tensors != nullptr) {
      const int file = static_cast<int>(part.files.size());
      part.files.push_back({plan_.tensor_file, *tensors});
      for (size_t i = 0; i < slices_.size(); ++i) {
        const SavedSlice& slice = slices_[i];
        part.tensors.push_back({slice.name, slice.dtype, slice.shape, {{file, begins_[i], slice.offset, slice.numel}}});
      }
    }
    finish_part(folder_, plan_.rank, part);
  });
}

void SaveJob::commit() {
  if (plan_.commits) commit_save(plan_.save_dir, plan_.tag, plan_.commit);
}

void SaveJob::run() {
  write_part();
  commit();
}

void SaveJob::write_part() {
  if (slices_.empty()) return finish(nullptr);
  FileChecksums sums;
  reporting([&] {
    ShardStream stream(items(), kMetadata);
    for (size_t i = 0; i < slices_.size(); ++i) begins_.push_back(stream.begin_of(static_cast<int>(i)));
    sums = write_shard(folder_ + "/" + plan_.tensor_file, stream, &cancelled_);
  });
  finish(&sums);
}

void SaveJob::take_snapshot(std::shared_ptr<ShardImage> image, int threads) {
  image_ = std::move(image);
  if (slices_.empty()) return;
  reporting([&] {
    image_->take(items(), kMetadata, threads);
    for (size_t i = 0; i < slices_.size(); ++i) begins_.push_back(image_->begin_of(static_cast<int>(i)));
  });
  for (SavedSlice& slice : slices_) slice.data = nullptr;  // what they belong to may go now
}

void SaveJob::write_part_of_image() {
  try {
    FileChecksums sums;
    if (!slices_.empty()) {
      reporting([&] { sums = image_->write(folder_ + "/" + plan_.tensor_file, &cancelled_); });
    }
    finish(slices_.empty() ? nullptr : &sums);
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
