#include "checkpoint/file_replace.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "platform/files.h"

namespace deepscale {
namespace {

/// Removes a file that was not finished.
class Unfinished {
 public:
  explicit Unfinished(std::string path) : path_(std::move(path)) {}
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;
  ~Unfinished() {
    if (!path_.empty()) remove_file(path_);
  }
  void finish() { path_.clear(); }

 private:
  std::string path_;
};

}  // namespace

void replace_file_by(const std::string& path, const std::function<void(const std::string& work)>& write) {
  const std::string work = path + ".tmp";
  Unfinished unfinished(work);
  write(work);
  sync_file(work);  // before it is seen: who waits for it may take it away at once
  rename_file(work, path);
  unfinished.finish();
}

void replace_file(const std::string& path, const std::function<void(std::ostream& out)>& write) {
  replace_file_by(path, [&](const std::string& work) {
    errno = 0;
    std::ofstream out(native_path(work).c_str(), std::ios::binary | std::ios::trunc);
    DS_CHECK_AS(IoError, out.good(), "cannot create {}: {}", work, std::strerror(errno));
    write(out);
    out.flush();
    out.close();
    DS_CHECK_AS(IoError, out.good(), "cannot write {}: {}", work,
                errno != 0 ? std::strerror(errno) : "the disk may be full");
  });
}

}  // namespace deepscale
