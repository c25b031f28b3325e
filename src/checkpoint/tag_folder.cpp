#include "checkpoint/tag_folder.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/error.h"
#include "checkpoint/file_replace.h"
#include "checkpoint/verified_file.h"
#include "config/json_text.h"
#include "platform/files.h"

namespace deepscale {
namespace {

using config::Json;

constexpr char kPartPrefix[] = "part_";
constexpr char kFailedPrefix[] = "failed_";
constexpr char kLatest[] = "latest";
constexpr char kBegun[] = ".begun_";  // of ranks that look whether they have a folder in common
constexpr char kSaving[] = ".saving", kReplaced[] = ".replaced", kRemoved[] = ".removed";
// Longer than commit_save() waits for the slowest rank.
constexpr std::chrono::hours kAbandonedAfter(1);

/// The folder beside the tag's that stands for a state of it.
std::string hidden_folder(const std::string& save_dir, const std::string& tag, const char* state) {
  return save_dir + "/." + tag + state;
}

/// The tag of a hidden folder's name; empty when it is none of that state.
std::string tag_of_hidden(const std::string& name, std::string_view state) {
  if (name.size() < state.size() + 2 || name.front() != '.' || !name.ends_with(state)) return "";
  return name.substr(1, name.size() - 1 - state.size());
}

std::string part_name(const char* prefix, int rank) {
  return prefix + std::to_string(rank);
}

void write_text(const std::string& path, const std::string& text) {
  replace_file(path, [&](std::ostream& out) { out << text; });
}

std::string read_text(const std::string& path) {
  std::ifstream in(native_path(path).c_str(), std::ios::binary);
  DS_CHECK_AS(IoError, in.good(), "cannot read {}", path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Ranks whose part is missing; throws when one has failed.
std::vector<int> missing_ranks(const std::string& folder, int ranks) {
  std::vector<int> missing;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::string failed = folder + "/" + part_name(kFailedPrefix, rank);
    DS_CHECK_AS(CheckpointError, !file_size(failed), "rank {} could not write its part: {}", rank, read_text(failed));
    if (!file_size(folder + "/" + part_name(kPartPrefix, rank))) missing.push_back(rank);
  }
  return missing;
}

void wait_for_parts(const std::string& folder, const CommitOptions& options) {
  const auto deadline = std::chrono::steady_clock::now() + options.patience;
  for (auto pause = std::chrono::milliseconds(1);; pause = std::min(2 * pause, std::chrono::milliseconds(100))) {
    const std::vector<int> missing = missing_ranks(folder, options.ranks);
    if (missing.empty()) return;
    DS_CHECK_AS(CheckpointError, options.cancelled == nullptr || !*options.cancelled, "saving {} was cancelled",
                folder);
    DS_CHECK_AS(CheckpointError, std::chrono::steady_clock::now() < deadline,
                "rank {} has not written its part of {} after {} s; is its machine's view of the folder the same?",
                missing.front(), folder, std::chrono::duration_cast<std::chrono::seconds>(options.patience).count());
    std::this_thread::sleep_for(pause);
  }
}

/// All parts as one manifest. Throws where a file that should be here has not the size that its part says.
Manifest read_parts(const std::string& folder, const CommitOptions& options) {
  std::vector<Manifest> parts;
  for (int rank = 0; rank < options.ranks; ++rank) {
    const std::string path = folder + "/" + part_name(kPartPrefix, rank);
    parts.push_back(parse_manifest(read_text(path), path, /*is_part=*/true));
    if (std::find(options.elsewhere.begin(), options.elsewhere.end(), rank) != options.elsewhere.end()) continue;
    for (const ManifestFile& file : parts.back().files) {
      const auto bytes = file_size(folder + "/" + file.name);
      DS_CHECK_AS(CheckpointError, bytes == file.checksums.bytes,
                  "{}/{} has {} bytes right after it was written, expected {}", folder, file.name, bytes.value_or(0),
                  file.checksums.bytes);
    }
  }
  Manifest whole = join_manifests(parts);
  whole.info = options.info;
  return whole;
}

/// What somebody else put into a checkpoint's folder stays in it when the checkpoint is saved anew.
void keep_foreign_files(const std::string& old_folder, const std::string& new_folder) {
  const auto is_state = [](const std::string& name) {
    const bool of_rank = name.starts_with("rank_") && (name.ends_with(".safetensors") || name.ends_with(".pt"));
    return of_rank || name == "common.pt" || name.ends_with("_model_states.pt") || name.ends_with("_optim_states.pt");
  };
  std::vector<std::string> own;
  try {
    for (const ManifestFile& file : read_manifest(old_folder).files) own.push_back(file.name);
  } catch (const CheckpointError&) {
    // An older program's folder, or a damaged one.
  }
  for (const std::string& name : list_directory(old_folder)) {
    const bool ours = name == kManifestName || is_state(name) || std::find(own.begin(), own.end(), name) != own.end();
    const std::string target = new_folder + "/" + name;
    if (!ours && !file_size(target) && !is_directory(target)) rename_file(old_folder + "/" + name, target);
  }
}

/// Removes a folder. Renamed first, so that a removal that is cut short leaves no half checkpoint under its name; what
/// the system does not let go, files of another user or open ones, is out of the way then.
void remove_renamed(const std::string& save_dir, const std::string& tag, const std::string& folder) {
  std::string away = hidden_folder(save_dir, tag, kRemoved);
  for (int i = 1; is_directory(away); ++i) away = hidden_folder(save_dir, tag + "." + std::to_string(i), kRemoved);
  if (is_directory(folder)) rename_file(folder, away);
  try {
    remove_directories(away);
  } catch (const IoError&) {
    // remove_abandoned() tries again.
  }
}

/// The folder under its name. Returns where what had the name before stands now; empty: there was nothing.
std::string put_in_place(const std::string& save_dir, const std::string& tag, const std::string& folder) {
  const std::string target = save_dir + "/" + tag;
  if (!is_directory(target)) {
    rename_file(folder, target);
    sync_directory(save_dir);
    return "";
  }
  std::string old = folder;
  if (!exchange_names(folder, target)) {
    old = hidden_folder(save_dir, tag, kReplaced);  // of a kill between the two names: restore_replaced()
    remove_renamed(save_dir, tag, old);
    rename_file(target, old);
    rename_file(folder, target);
  }
  sync_directory(save_dir);
  return old;
}

double saved_at(const Manifest& manifest, const std::string& folder) {
  const Json info = config::parse_json_text(manifest.info);
  if (info.contains("saved_at") && info["saved_at"].is_number()) return info["saved_at"].get<double>();
  return changed_at(folder + "/" + kManifestName).value_or(0.0);
}

/// Never the one that was saved last or that `latest` names, nor what is not known to be a checkpoint.
void remove_older(const std::string& save_dir, const std::string& newest, const std::vector<TagFacts>& others,
                  const CommitOptions& options) {
  const std::string named = read_latest(save_dir).value_or("");
  const std::string named_above = options.latest_dir.empty() ? "" : read_latest(options.latest_dir).value_or("");
  const std::string below = options.latest_text.substr(0, options.latest_text.rfind('/') + 1);
  int kept = 1;
  for (const TagFacts& facts : others) {
    if (facts.tag == newest || !facts.problem.empty()) continue;
    if (++kept <= options.keep_last || facts.tag == named || below + facts.tag == named_above) continue;
    remove_renamed(save_dir, facts.tag, save_dir + "/" + facts.tag);
  }
}

/// A folder that a killed save left. It may be the checkpoint that the new one had already changed names with.
void remove_leftover(const std::string& save_dir, const std::string& tag, const std::string& folder) {
  const std::string target = save_dir + "/" + tag;
  if (!is_directory(folder)) return;
  if (!tag.empty() && file_size(folder + "/" + kManifestName) && is_directory(target))
    keep_foreign_files(folder, target);
  remove_renamed(save_dir, tag, folder);
}

/// Makes the folder and those above it; those that were not there are on the disk when their parents are.
void make_synced(const std::string& folder) {
  std::vector<std::string> parents;
  for (std::string parent = folder; !parent.empty() && !is_directory(parent);) {
    const size_t slash = parent.find_last_of("/\\");
    parent = slash == std::string::npos ? "." : slash == 0 ? "/" : parent.substr(0, slash);
    parents.push_back(parent);
  }
  make_directories(folder);
  for (const std::string& parent : parents) sync_directory(parent);
}

/// A clock that was set back, or another machine's, must not make this checkpoint older than those that were there.
std::string later_than(const std::vector<TagFacts>& others, const std::string& info) {
  Json read = config::parse_json_text(info);
  if (others.empty() || !read.is_object() || !read.contains("saved_at") || !read["saved_at"].is_number()) return info;
  constexpr double kLater = 1e-3;
  if (read["saved_at"].get<double>() > others.front().saved_at) return info;
  read["saved_at"] = others.front().saved_at + kLater;
  return read.dump();
}

}  // namespace

void check_tag_name(const std::string& tag) {
  DS_CHECK_AS(ConfigError,
              !tag.empty() && tag.front() != '.' && tag.find_first_of("/\\:") == std::string::npos &&
                  tag.find('\0') == std::string::npos,
              "a checkpoint's tag is the name of a folder, without path and without a dot in front; got \"{}\"", tag);
  DS_CHECK_AS(ConfigError, tag != kLatest,
              "a checkpoint cannot have the tag \"{}\": the file of this name says which "
              "checkpoint is the newest; choose another tag",
              tag);
}

std::string saving_folder(const std::string& save_dir, const std::string& tag) {
  return hidden_folder(save_dir, tag, kSaving);
}

void restore_replaced(const std::string& save_dir) {
  for (const std::string& name : list_directory(save_dir)) {
    const std::string tag = tag_of_hidden(name, kReplaced);
    if (tag.empty()) continue;
    const std::string target = save_dir + "/" + tag;
    // A run that is alive is through with its two renames at once.
    for (int i = 0; i < 20 && !is_directory(target); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (is_directory(target) || !is_directory(save_dir + "/" + name)) continue;
    rename_file(save_dir + "/" + name, target);
    sync_directory(save_dir);
  }
}

void remove_abandoned(const std::string& save_dir, std::chrono::seconds age) {
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  for (const std::string& name : list_directory(save_dir)) {
    if (name.starts_with(kBegun) && now - changed_at(save_dir + "/" + name).value_or(now) >= age.count()) {
      remove_file(save_dir + "/" + name);
      continue;
    }
    const std::string saving = tag_of_hidden(name, kSaving), replaced = tag_of_hidden(name, kReplaced);
    if (saving.empty() && tag_of_hidden(name, kRemoved).empty() && replaced.empty()) continue;
    if (!replaced.empty() && !is_directory(save_dir + "/" + replaced)) continue;
    const std::string folder = save_dir + "/" + name;
    double changed = changed_at(folder).value_or(now);
    for (const std::string& file : list_directory(folder)) {
      changed = std::max(changed, changed_at(folder + "/" + file).value_or(now));
    }
    if (now - changed < static_cast<double>(age.count())) continue;
    try {
      if (saving.empty() && replaced.empty()) {
        remove_directories(folder);
      } else {
        remove_leftover(save_dir, saving.empty() ? replaced : saving, folder);
      }
    } catch (const IoError&) {
      // It stays, and the others need not.
    }
  }
}

std::string begin_save(const std::string& save_dir, const std::string& tag) {
  check_tag_name(tag);
  restore_replaced(save_dir);
  const std::string folder = saving_folder(save_dir, tag);
  remove_leftover(save_dir, tag, folder);
  make_synced(folder);
  return folder;
}

void finish_part(const std::string& folder, int rank, const Manifest& part) {
  write_text(folder + "/" + part_name(kPartPrefix, rank), manifest_text(part));
}

std::string read_part(const std::string& folder, int rank) {
  return read_text(folder + "/" + part_name(kPartPrefix, rank));
}

void put_part(const std::string& folder, int rank, const std::string& text) {
  write_text(folder + "/" + part_name(kPartPrefix, rank), text);
}

void fail_part(const std::string& folder, int rank, const std::string& reason) noexcept {
  try {
    write_text(folder + "/" + part_name(kFailedPrefix, rank), reason);
  } catch (...) {
    // A full disk may refuse this as well: the other rank then runs out of patience, or learns it by other means.
  }
}

void commit_save(const std::string& save_dir, const std::string& tag, const CommitOptions& options) {
  const std::string folder = saving_folder(save_dir, tag);
  wait_for_parts(folder, options);
  Manifest manifest = read_parts(folder, options);
  const std::vector<TagFacts> others = list_tags(save_dir);  // once: their manifests are read for it
  manifest.info = later_than(others, manifest.info);
  for (int rank = 0; rank < options.ranks; ++rank) remove_file(folder + "/" + part_name(kPartPrefix, rank));
  sync_directory(folder);
  write_text(folder + "/" + kManifestName, manifest_text(manifest));
  sync_directory(folder);
  const std::string old = put_in_place(save_dir, tag, folder);
  const bool above = !options.latest_dir.empty();
  if (options.write_latest) write_latest(above ? options.latest_dir : save_dir, above ? options.latest_text : tag);
  // What cannot be removed, because it is another user's for instance, stays: the checkpoint is valid.
  const auto attempt = [](const auto& work) {
    try {
      work();
    } catch (const Error&) {
    }
  };
  attempt([&] {
    if (old.empty()) return;
    keep_foreign_files(old, save_dir + "/" + tag);
    remove_renamed(save_dir, tag, old);
    sync_directory(save_dir);
  });
  attempt([&] {
    if (options.keep_last > 0) remove_older(save_dir, tag, others, options);
  });
  attempt([&] { remove_abandoned(save_dir, kAbandonedAfter); });
}

void abandon_save(const std::string& save_dir, const std::string& tag) {
  remove_leftover(save_dir, tag, saving_folder(save_dir, tag));
}

void write_latest(const std::string& save_dir, const std::string& tag) {
  const std::string path = save_dir + "/" + kLatest, work = save_dir + "/.latest.new";
  write_text(work, tag);
  rename_file(work, path);
  sync_directory(save_dir);
}

std::optional<std::string> read_latest(const std::string& save_dir) {
  const std::string path = save_dir + "/" + kLatest;
  if (!file_size(path)) return std::nullopt;
  std::string text = read_text(path);
  const auto is_space = [](unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  while (!text.empty() && is_space(static_cast<unsigned char>(text.back()))) text.pop_back();
  text.erase(0, static_cast<size_t>(std::find_if_not(text.begin(), text.end(), is_space) - text.begin()));
  if (std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c == 0x7f; })) return "";
  try {
    (void)Json(text).dump();
  } catch (const Json::exception&) {  // no UTF-8
    return "";
  }
  return text;
}

std::vector<TagFacts> list_tags(const std::string& save_dir) {
  std::vector<TagFacts> found;
  for (const std::string& name : list_directory(save_dir)) {
    const std::string folder = save_dir + "/" + name;
    if (name.front() == '.' || !file_size(folder + "/" + kManifestName)) continue;
    TagFacts facts;
    facts.tag = name;
    facts.saved_at = changed_at(folder + "/" + kManifestName).value_or(0.0);
    try {
      facts.manifest = read_manifest(folder);
      facts.saved_at = saved_at(facts.manifest, folder);
      const auto problems = missing_files(folder, facts.manifest);
      if (!problems.empty()) facts.problem = problems.front();
    } catch (const Error& error) {
      facts.problem = error.what();
    }
    found.push_back(std::move(facts));
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const TagFacts& a, const TagFacts& b) { return a.saved_at > b.saved_at; });
  return found;
}

std::vector<std::string> verify_tag(const std::string& folder, bool deep, int threads, bool loads_next) {
  std::vector<std::string> problems;
  try {
    const Manifest manifest = read_manifest(folder);
    problems = missing_files(folder, manifest);
    if (!deep) return problems;
    const FileCaching caching = loads_next ? caching_before_loading(manifest) : FileCaching::kDirect;
    for (const ManifestFile& file : manifest.files) {
      if (file_size(folder + "/" + file.name) != file.checksums.bytes) continue;  // named already
      for (std::string& problem : verify_file(folder, file, threads, caching)) problems.push_back(std::move(problem));
    }
  } catch (const Error& error) {
    problems.emplace_back(error.what());
  }
  return problems;
}

}  // namespace deepscale
