#include "checkpoint/tag_folder.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

#include "base/error.h"
#include "checkpoint/file_replace.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/save_job.h"
#include "checkpoint/shard_writer.h"
#include "checkpoint/verified_file.h"
#include "config/json_text.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

class TagFolderTest : public ::testing::Test {
 protected:
  TagFolderTest() : root_(::testing::TempDir() + "tag_folder_" + std::to_string(this_process_id())) {
    remove_directories(root_);
  }
  ~TagFolderTest() override { remove_directories(root_); }

  static ShardItem item_of(const std::string& key, const std::vector<float>& values) {
    return {key,
            DType::kFloat32,
            {static_cast<int64_t>(values.size())},
            [&values] { return std::shared_ptr<const void>(std::shared_ptr<void>(), values.data()); },
            true};
  }

  /// "weight" of `numel` elements that are 0, 1, ..., in equal slices of the ranks.
  void save(const std::string& tag, int ranks, int64_t numel, CommitOptions options = {}) {
    const std::string folder = begin_save(root_, tag);
    for (int rank = 0; rank < ranks; ++rank) {
      const int64_t begin = numel * rank / ranks, end = numel * (rank + 1) / ranks;
      std::vector<float> values(end - begin);
      std::iota(values.begin(), values.end(), static_cast<float>(begin));
      ShardStream stream({item_of("weight", values)}, {});
      const std::string name = "rank_" + std::to_string(rank) + ".safetensors";
      Manifest part;
      part.tag = tag;
      part.files.push_back({name, write_shard(folder + "/" + name, stream)});
      part.tensors.push_back({"weight", DType::kFloat32, {numel}, {{0, stream.begin_of(0), begin, end - begin}}});
      finish_part(folder, rank, part);
    }
    options.ranks = ranks;
    commit_save(root_, tag, options);
  }

  [[nodiscard]] std::vector<float> read(const std::string& tag, int64_t offset, int64_t numel) const {
    std::vector<float> values(numel, -1.0f);
    CheckpointTensors(root_ + "/" + tag).read({{"weight", offset, numel, values.data()}});
    return values;
  }

  /// One bit of a file becomes another one.
  void damage(const std::string& path, int64_t position) const {
    std::fstream file(root_ + "/" + path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(position);
    const char byte = static_cast<char>(file.get() ^ 4);
    file.seekp(position);
    file.put(byte);
  }

  [[nodiscard]] std::string failure(const std::string& tag, int64_t offset, int64_t numel) const {
    try {
      (void)read(tag, offset, numel);
      return "";
    } catch (const CheckpointError& error) {
      return error.what();
    }
  }

  std::string root_;
};

TEST_F(TagFolderTest, AnyRangeIsReadFromSlicesOfAnyNumberOfRanks) {
  constexpr int64_t kNumel = 2'500'000;  // more than a block for two ranks
  for (const int ranks : {1, 2, 3}) {
    save("step1", ranks, kNumel);
    for (const auto& [offset, numel] :
         {std::pair<int64_t, int64_t>{0, kNumel}, {kNumel / 2 - 7, 1'200'000}, {5, 0}, {kNumel - 1, 1}}) {
      const std::vector<float> values = read("step1", offset, numel);
      for (int64_t i = 0; i < numel; ++i) ASSERT_EQ(values[i], static_cast<float>(offset + i));
    }
  }
  EXPECT_TRUE(verify_tag(root_ + "/step1", true).empty());
}

TEST_F(TagFolderTest, FilesAreOrdinarySafetensors) {
  save("step1", 2, 1000);
  SafetensorsFile file = SafetensorsFile::open(root_ + "/step1/rank_1.safetensors");
  const SafetensorsEntry* entry = file.find("weight");
  ASSERT_NE(entry, nullptr);
  std::vector<float> values(500);
  file.read(*entry, values.data());
  EXPECT_EQ(values.front(), 500.0f);
}

TEST_F(TagFolderTest, ADamagedBitIsFoundAndNamedWhereItIsNeeded) {
  constexpr int64_t kNumel = 4'000'000;
  save("step1", 1, kNumel);
  const int64_t bytes = file_size(root_ + "/step1/rank_0.safetensors").value();
  damage("step1/rank_0.safetensors", bytes - 10);
  EXPECT_EQ(failure("step1", 0, 1000), "");  // in another block
  const std::string message = failure("step1", 0, kNumel);
  EXPECT_NE(message.find("rank_0.safetensors"), std::string::npos) << message;
  EXPECT_NE(message.find("damaged between byte"), std::string::npos) << message;
  EXPECT_EQ(verify_tag(root_ + "/step1", true).size(), 1u);
  EXPECT_TRUE(verify_tag(root_ + "/step1", false).empty());
}

TEST_F(TagFolderTest, MissingAndCutFilesAreNamedBeforeAnythingIsRead) {
  save("step1", 2, 1000);
  std::ofstream(root_ + "/step1/rank_1.safetensors") << "short";
  EXPECT_NE(failure("step1", 0, 1).find("rank_1.safetensors has 5 bytes"), std::string::npos);
  remove_file(root_ + "/step1/rank_1.safetensors");
  EXPECT_NE(failure("step1", 0, 1).find("rank_1.safetensors is missing"), std::string::npos);
  EXPECT_NE(list_tags(root_).at(0).problem.find("missing"), std::string::npos);
}

TEST_F(TagFolderTest, EveryChangedByteOfAManifestIsNoticed) {
  save("step1", 2, 1000);
  const Manifest manifest = read_manifest(root_ + "/step1");
  const std::string text = manifest_text(manifest);
  EXPECT_EQ(manifest_text(parse_manifest(text, "m")), text);
  for (size_t i = 0; i < text.size(); ++i) {
    std::string changed = text;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    EXPECT_THROW((void)parse_manifest(changed, "m"), CheckpointError) << i << ": " << changed.substr(i, 20);
    EXPECT_THROW((void)parse_manifest(text.substr(0, i), "m"), CheckpointError) << i;
  }
}

TEST_F(TagFolderTest, ManifestsThatLieAreRefused) {
  save("step1", 2, 1000);
  const Manifest good = read_manifest(root_ + "/step1");
  const auto refused = [&](const std::function<void(Manifest&)>& change) {
    Manifest bad = good;
    change(bad);
    try {
      (void)parse_manifest(manifest_text(bad), "m");
      return std::string();
    } catch (const CheckpointError& error) {
      return std::string(error.what());
    }
  };
  EXPECT_EQ(refused([](Manifest&) {}), "");
  for (const char* name : {"../secret", "/etc/passwd", "..", "", "a\\b", "manifest.json"}) {
    EXPECT_NE(refused([&](Manifest& m) { m.files[0].name = name; }).find("not the name of a file"), std::string::npos);
  }
  EXPECT_NE(refused([](Manifest& m) { m.files[0].name = m.files[1].name; }).find("twice"), std::string::npos);
  EXPECT_NE(refused([](Manifest& m) { m.tensors[0].slices[1].offset -= 1; }).find("two places"), std::string::npos);
  EXPECT_NE(refused([](Manifest& m) { m.tensors[0].slices[1].offset += 1; }).find("missing"), std::string::npos);
  EXPECT_NE(refused([](Manifest& m) { m.tensors[0].slices.pop_back(); }).find("500 elements are stored of 1000"),
            std::string::npos);
  EXPECT_NE(refused([](Manifest& m) { m.tensors[0].slices[0].begin = int64_t{1} << 61; }).find("not inside"),
            std::string::npos);
  EXPECT_NE(refused([](Manifest& m) { m.tensors[0].slices[0].file = 7; }).find("no file 7"), std::string::npos);
  EXPECT_NE(refused([](Manifest& m) {
              m.tensors[0].shape = {int64_t{1} << 40, int64_t{1} << 40};
            }).find("impossible"),
            std::string::npos);
  EXPECT_NE(refused([](Manifest& m) { m.files[0].checksums.bytes = int64_t{1} << 50; }).find("checksums"),
            std::string::npos);
}

TEST_F(TagFolderTest, NothingIsSeenBeforeAllPartsAreThere) {
  save("step1", 1, 10);
  const std::string folder = begin_save(root_, "step2");
  CommitOptions options;
  options.patience = std::chrono::milliseconds(50);
  EXPECT_THROW(commit_save(root_, "step2", options), CheckpointError);
  fail_part(folder, 0, "the disk is full");
  try {
    commit_save(root_, "step2", options);
    FAIL();
  } catch (const CheckpointError& error) {
    EXPECT_NE(std::string(error.what()).find("rank 0 could not write its part: the disk is full"), std::string::npos);
  }
  const auto tags = list_tags(root_);
  ASSERT_EQ(tags.size(), 1u);
  EXPECT_EQ(tags[0].tag, "step1");
  save("step2", 1, 10);  // what the other left is no hindrance
  EXPECT_EQ(list_tags(root_).size(), 2u);
}

TEST_F(TagFolderTest, ForeignFilesOfAFolderThatAKillLeftComeBack) {
  save("a", 1, 10);
  save("b", 1, 10);
  rename_file(root_ + "/b", root_ + "/.a.saving");  // as if names had just been exchanged
  std::ofstream(native_path(root_ + "/.a.saving/notes.txt").c_str()) << "mine";
  begin_save(root_, "a");
  EXPECT_TRUE(file_size(root_ + "/a/notes.txt"));
  EXPECT_FALSE(file_size(root_ + "/.a.saving/notes.txt"));
  EXPECT_TRUE(verify_tag(root_ + "/a", /*deep=*/true).empty());
}

TEST_F(TagFolderTest, ATagIsReplacedAsAWholeAndForeignFilesStay) {
  save("step1", 3, 900);
  std::ofstream(root_ + "/step1/notes.txt") << "mine";
  std::ofstream(root_ + "/step1/mp_rank_00_model_states.pt") << "of an older program";
  save("step1", 1, 700);
  EXPECT_EQ(list_directory(root_ + "/step1"),
            (std::vector<std::string>{"manifest.json", "notes.txt", "rank_0.safetensors"}));
  EXPECT_EQ(read("step1", 699, 1)[0], 699.0f);
  EXPECT_EQ(list_directory(root_), (std::vector<std::string>{"latest", "step1"}));
}

TEST_F(TagFolderTest, OldCheckpointsGoWhenSoManyAreKept) {
  const auto at = [](double time, int keep) {
    CommitOptions options;
    options.info = fmt::format("{{\"saved_at\": {}}}", time);
    options.keep_last = keep;
    return options;
  };
  for (int step = 1; step <= 4; ++step) save("step" + std::to_string(step), 1, 10, at(step, 0));
  make_directories(root_ + "/other");
  save("step5", 1, 10, at(5, 2));
  EXPECT_EQ(list_directory(root_), (std::vector<std::string>{"latest", "other", "step4", "step5"}));
  std::string latest;
  std::ifstream(root_ + "/latest") >> latest;
  EXPECT_EQ(latest, "step5");
}

TEST_F(TagFolderTest, WhatLatestNamesIsKept) {
  CommitOptions named, other;
  named.keep_last = other.keep_last = 1;
  other.write_latest = false;
  save("resume", 1, 10, named);
  save("best", 1, 10, other);
  save("better", 1, 10, other);
  EXPECT_EQ(list_directory(root_), (std::vector<std::string>{"better", "latest", "resume"}));
  save("next", 1, 10, named);
  EXPECT_EQ(list_directory(root_), (std::vector<std::string>{"latest", "next"}));
}

TEST_F(TagFolderTest, LatestMayStandAboveTheFolderOfTags) {
  const std::string above = root_;
  root_ += "/run";
  CommitOptions options;
  options.keep_last = 1;
  options.latest_dir = above;
  options.latest_text = "run/a";
  save("a", 1, 10, options);
  EXPECT_EQ(read_latest(above), "run/a");
  EXPECT_FALSE(read_latest(root_).has_value());
  options.write_latest = false;
  options.latest_text = "run/b";
  save("b", 1, 10, options);
  EXPECT_EQ(list_directory(root_), (std::vector<std::string>{"a", "b"}));
  root_ = above;
}

TEST_F(TagFolderTest, ALatestThatIsDamagedIsNotTaken) {
  EXPECT_FALSE(read_latest(root_).has_value());
  make_directories(root_);
  const auto found = [&](const std::string& text) {
    std::ofstream(root_ + "/latest", std::ios::binary) << text;
    return read_latest(root_);
  };
  EXPECT_EQ(found(" step 1\r\n"), "step 1");
  for (const std::string& text :
       {std::string(), std::string("\0\0\0", 3), std::string("\xff\xfe"), std::string("a\nb")}) {
    EXPECT_EQ(found(text), "") << text;
  }
  EXPECT_THROW(begin_save(root_, "latest"), ConfigError);
}

TEST_F(TagFolderTest, AClockThatWasSetBackMakesNoCheckpointOlder) {
  const auto at = [](int day) {
    CommitOptions options;
    options.info = fmt::format("{{\"saved_at\": {}, \"steps\": 7}}", 86'400 * day);
    options.keep_last = 2;
    return options;
  };
  save("a", 1, 10, at(9));
  save("b", 1, 10, at(10));
  save("c", 1, 10, at(5));  // another machine
  save("d", 1, 10, at(6));
  const auto tags = list_tags(root_);
  ASSERT_EQ(tags.size(), 2u);
  EXPECT_EQ(tags[0].tag, "d");
  EXPECT_EQ(tags[1].tag, "c");
  EXPECT_NE(tags[0].manifest.info.find("\"steps\":7"), std::string::npos) << tags[0].manifest.info;
}

TEST_F(TagFolderTest, WhatCannotBeRemovedDoesNotMakeASaveFail) {
  save("a", 1, 10);
  const std::string file = root_ + "/a/rank_0.safetensors", quiet = " 2>/dev/null";
  if (std::getenv("WINDIR") != nullptr) GTEST_SKIP() << "no chattr";
  if (std::system(("chattr +i '" + file + "'" + quiet).c_str()) != 0) GTEST_SKIP() << "chattr +i needs root and ext4";
  std::ofstream(root_ + "/a/notes.txt") << "mine";
  EXPECT_NO_THROW(save("a", 1, 20));
  EXPECT_EQ(read("a", 19, 1)[0], 19.0f);
  EXPECT_EQ(read_latest(root_), "a");
  EXPECT_TRUE(file_size(root_ + "/a/notes.txt"));
  EXPECT_NO_THROW(save("a", 1, 30));
  EXPECT_EQ(read("a", 29, 1)[0], 29.0f);
  ASSERT_EQ(std::system(("chattr -i '" + root_ + "'/.*/*.safetensors" + quiet).c_str()), 0);
  remove_abandoned(root_, std::chrono::seconds(0));
  EXPECT_EQ(list_directory(root_), (std::vector<std::string>{"a", "latest"}));
}

TEST_F(TagFolderTest, FilesOfOthersSurviveASaveThatIsAbandoned) {
  save("a", 1, 10);
  save("b", 1, 10);
  rename_file(root_ + "/b", root_ + "/.a.saving");  // as if names had just been exchanged
  std::ofstream(root_ + "/.a.saving/notes.txt") << "mine";
  abandon_save(root_, "a");
  EXPECT_TRUE(file_size(root_ + "/a/notes.txt"));
  EXPECT_FALSE(is_directory(root_ + "/.a.saving"));
  EXPECT_NO_THROW(abandon_save(root_, "a"));
}

TEST_F(TagFolderTest, OldFilesOfMoreRanksAreNoForeignOnes) {
  save("a", 3, 30);
  for (const char* name : {"rank_00002.safetensors", "rank_00002.pt", "common.pt"})
    std::ofstream(root_ + "/a/" + name) << "old";
  std::ofstream(root_ + "/a/manifest.json") << "{";  // so that nobody knows what was written
  save("a", 1, 10);
  EXPECT_EQ(list_directory(root_ + "/a"), (std::vector<std::string>{"manifest.json", "rank_0.safetensors"}));
}

TEST_F(TagFolderTest, ACheckpointThatWasMovedAsideGetsItsNameBack) {
  save("a", 1, 10);
  rename_file(root_ + "/a", root_ + "/.a.replaced");  // where names cannot be exchanged, a kill leaves this
  make_directories(root_ + "/.a.saving");
  EXPECT_TRUE(list_tags(root_).empty());
  restore_replaced(root_);
  ASSERT_EQ(list_tags(root_).size(), 1u);
  EXPECT_EQ(read("a", 3, 1)[0], 3.0f);
  rename_file(root_ + "/a", root_ + "/.a.replaced");
  save("b", 1, 20);  // saving does so as well
  EXPECT_EQ(read("a", 3, 1)[0], 3.0f);
}

TEST_F(TagFolderTest, WhatKilledRunsLeaveGoesWhenNothingHasChangedForLong) {
  save("a", 1, 10);
  make_directories(root_ + "/.b.saving/inner");
  make_directories(root_ + "/.a.replaced");
  make_directories(root_ + "/.c.removed");
  make_directories(root_ + "/.d.replaced");  // nothing has its name: it is the only one
  make_directories(root_ + "/.mine");
  remove_abandoned(root_, std::chrono::hours(1));
  EXPECT_TRUE(is_directory(root_ + "/.b.saving") && is_directory(root_ + "/.c.removed"));
  remove_abandoned(root_, std::chrono::seconds(0));
  for (const char* gone : {".b.saving", ".a.replaced", ".c.removed"})
    EXPECT_FALSE(is_directory(root_ + "/" + gone)) << gone;
  for (const char* left : {"a", ".d.replaced", ".mine"}) EXPECT_TRUE(is_directory(root_ + "/" + left)) << left;
}

TEST_F(TagFolderTest, TagsAreNamesOfFolders) {
  for (const char* tag : {"", ".", "..", "a/b", ".hidden", "c:\\x", "latest"})
    EXPECT_THROW(check_tag_name(tag), ConfigError) << tag;
  EXPECT_NO_THROW(check_tag_name("global_step10"));
}

TEST_F(TagFolderTest, AnImageHoldsWhatItCopiedWhateverHappensToTheTensors) {
  std::vector<float> values(3'000'000, 1.0f), more(5, 2.0f);
  const std::vector<ShardItem> items = {item_of("a", values), item_of("b", more)};
  ShardImage image;
  image.take(items, {{"kind", "test"}}, 3);
  std::fill(values.begin(), values.end(), 9.0f);
  make_directories(root_);
  const FileChecksums sums = image.write(root_ + "/image.safetensors");
  EXPECT_TRUE(verify_file(root_, {"image.safetensors", sums}).empty());
  SafetensorsFile file = SafetensorsFile::open(root_ + "/image.safetensors");
  std::vector<float> found(values.size());
  file.read(*file.find("a"), found.data());
  EXPECT_EQ(found, std::vector<float>(values.size(), 1.0f));
  const int64_t capacity = image.capacity();
  image.take(items, {}, 1);
  EXPECT_EQ(image.capacity(), capacity);  // the memory is used again
}

TEST_F(TagFolderTest, AFileIsTheSameByHoweverManyThreadsItIsWritten) {
  std::vector<float> values(7'000'001), more(5, 2.0f);
  std::iota(values.begin(), values.end(), 0.0f);
  const ShardStream stream({item_of("a", values), item_of("b", more)}, {});
  make_directories(root_);
  const FileChecksums one = write_shard(root_ + "/one.safetensors", stream);
  const FileChecksums several = write_shard(root_ + "/several.safetensors", stream, {.threads = 4});
  EXPECT_GT(one.blocks.size(), 5u);
  EXPECT_EQ(one.blocks, several.blocks);
  for (const char* name : {"one.safetensors", "several.safetensors"}) {
    EXPECT_EQ(checksums_of_file(root_ + "/" + name).blocks, one.blocks) << name;
  }
  SafetensorsFile file = SafetensorsFile::open(root_ + "/several.safetensors");
  std::vector<float> found(values.size());
  file.read(*file.find("a"), found.data());
  EXPECT_EQ(found, values);
}

TEST_F(TagFolderTest, PartsAreReadAndDamageIsFoundWhateverTheSizeOfBlocks) {
  std::vector<char> values(3'000'001);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<char>(i * 7 % 251);
  make_directories(root_);
  std::ofstream(root_ + "/x", std::ios::binary).write(values.data(), static_cast<std::streamsize>(values.size()));
  for (int64_t block = 4096; block <= kChunkBytes; block *= 4) {
    ManifestFile file{"x", {.bytes = static_cast<int64_t>(values.size()), .block_bytes = block, .blocks = {}}};
    file.checksums.blocks.resize(static_cast<size_t>(file.checksums.count()));
    set_checksums(file.checksums, 0, values.data(), file.checksums.bytes);
    EXPECT_TRUE(verify_file(root_, file, 2).empty()) << block;
    std::vector<char> first(10), middle(1'500'000), last(5);
    read_verified(
        root_,
        {{&file, {{2'999'996, 5, last.data()}, {1'000'001, 1'500'000, middle.data()}, {4090, 10, first.data()}}}}, 3);
    EXPECT_EQ(0, std::memcmp(first.data(), values.data() + 4090, first.size())) << block;
    EXPECT_EQ(0, std::memcmp(middle.data(), values.data() + 1'000'001, middle.size())) << block;
    EXPECT_EQ(0, std::memcmp(last.data(), values.data() + 2'999'996, last.size())) << block;
    file.checksums.blocks[static_cast<size_t>(2'000'000 / block)] ^= 1;
    EXPECT_EQ(damaged_blocks(root_, file, 0, file.checksums.count()), std::vector<int64_t>{2'000'000 / block});
    EXPECT_THROW(read_verified(root_, {{&file, {{1'999'999, 2, first.data()}}}}), CheckpointError) << block;
    EXPECT_NO_THROW(read_verified(root_, {{&file, {{0, 10, first.data()}}}})) << block;
  }
}

/// The committing rank takes the parts away when all are there: nothing may be left to do for a writer whose part is
/// seen. A link to nothing is what cannot be brought to the disk here.
TEST_F(TagFolderTest, WhatIsNotOnTheDiskIsNotSeen) {
  make_directories(root_);
  std::error_code refused;
  const auto link = [&](const std::string& work) { std::filesystem::create_symlink(root_ + "/none", work, refused); };
  EXPECT_THROW(replace_file_by(root_ + "/seen", link), IoError);
  if (refused) GTEST_SKIP() << "no links here";
  EXPECT_EQ(list_directory(root_), std::vector<std::string>());
}

TEST_F(TagFolderTest, TheLayoutOfAManifestIsFoundHoweverItIsLaidOut) {
  make_directories(root_);
  const std::string path = root_ + "/" + kManifestName;
  const auto write = [&](const std::string& text) { std::ofstream(path, std::ios::binary) << text; };
  for (const std::string layout : {"native", "deepspeed", "another"}) {
    Manifest manifest;
    manifest.layout = layout;
    manifest.info = "{}";
    const std::string text = manifest_text(manifest);
    write(text);
    EXPECT_EQ(manifest_layout(root_), layout);
    write(config::parse_json_text(text).dump(1));
    EXPECT_EQ(manifest_layout(root_), layout);
    write(text.substr(0, 20));
    EXPECT_THROW((void)manifest_layout(root_), CheckpointError);
  }
  write("");
  EXPECT_THROW((void)manifest_layout(root_), CheckpointError);
  remove_file(path);
  EXPECT_THROW((void)manifest_layout(root_), CheckpointError);
}

TEST_F(TagFolderTest, ManyFilesAreReadInOneGo) {
  make_directories(root_);
  constexpr int kFiles = 40;
  std::vector<std::vector<char>> values(kFiles), found(kFiles);
  std::vector<ManifestFile> files(kFiles);
  std::vector<FileParts> wanted;
  for (int f = 0; f < kFiles; ++f) {
    values[f].resize(static_cast<size_t>(f % 7 * 700'000 + 1));
    for (size_t i = 0; i < values[f].size(); ++i) values[f][i] = static_cast<char>((i + f) * 7 % 251);
    files[f] = {fmt::format("file{}", f), {.block_bytes = 4096 << f % 5 * 2, .blocks = {}}};
    FileChecksums& sums = files[f].checksums;
    sums.bytes = static_cast<int64_t>(values[f].size());
    sums.blocks.resize(static_cast<size_t>(sums.count()));
    set_checksums(sums, 0, values[f].data(), sums.bytes);
    std::ofstream(root_ + "/" + files[f].name, std::ios::binary).write(values[f].data(), sums.bytes);
    found[f].resize(f % 3 == 1 ? 0 : values[f].size());  // of some nothing is wanted
    wanted.push_back({&files[f], {{0, static_cast<int64_t>(found[f].size()), found[f].data()}}});
  }
  for (const int threads : {1, 8}) {
    read_verified(root_, wanted, threads);
    for (int f = 0; f < kFiles; ++f) {
      EXPECT_TRUE(f % 3 == 1 || found[f] == values[f]) << f;
      std::fill(found[f].begin(), found[f].end(), '\0');
    }
  }
  files[31].checksums.blocks.back() ^= 1;  // nothing is wanted of it
  EXPECT_NO_THROW(read_verified(root_, wanted, 8));
  files[33].checksums.blocks.back() ^= 1;
  EXPECT_THROW(read_verified(root_, wanted, 8), CheckpointError);
}

TEST_F(TagFolderTest, AnArchiveThatFailsEndsTheWritingOfTensors) {
  (void)begin_save(root_, "t");
  make_directories(saving_folder(root_, "t") + "/archive.pt");  // a folder where the file should be
  std::atomic<int> asked = 0;
  std::vector<float> values(1'000'000);
  std::vector<SavedSlice> slices;
  for (int i = 0; i < 64; ++i) {
    slices.push_back({"t" + std::to_string(i), DType::kFloat32, {1'000'000}, 0, 1'000'000, [&] {
                        ++asked;
                        std::this_thread::sleep_for(std::chrono::milliseconds(20));
                        return std::shared_ptr<const void>(std::shared_ptr<void>(), values.data());
                      }});
  }
  SavePlan plan;
  plan.save_dir = root_;
  plan.tag = "t";
  plan.tensor_file = "x.safetensors";
  std::vector<SavedArchive> archives(1);
  archives[0].name = "archive.pt";
  SaveJob job(std::move(plan), std::move(slices), std::move(archives));
  try {
    job.write_part();
    FAIL() << "the archive was written";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("archive.pt"), std::string::npos) << error.what();
  }
  EXPECT_LT(asked, 64);
}

TEST_F(TagFolderTest, AnErrorOfOneThreadEndsTheWritingOfAll) {
  make_directories(root_);
  std::atomic<bool> cancelled = true;
  const auto sources = []() -> BlockSource {
    return [](int64_t offset, int64_t bytes, char* buffer) {
      if (offset >= 8 * kChunkBytes) throw IoError("bad block");
      std::fill_n(buffer, bytes, 'x');
      return buffer;
    };
  };
  const int64_t total = 40 * kChunkBytes;
  EXPECT_THROW(write_blocks(root_ + "/x", total, sources, {.threads = 3}), IoError);
  EXPECT_THROW(write_blocks(root_ + "/x", 2 * kChunkBytes, sources, {.threads = 3, .cancelled = &cancelled}), IoError);
}

TEST_F(TagFolderTest, AnErrorOfATensorThatIsLoadedReachesTheCaller) {
  make_directories(root_);
  const std::vector<ShardItem> items = {{"a", DType::kFloat32, {4}, []() -> std::shared_ptr<const void> {
                                           throw IoError("the file behind it is gone");
                                         }}};
  ShardStream stream(items, {});
  EXPECT_THROW(write_shard(root_ + "/x", stream), IoError);
  ShardImage image;
  EXPECT_THROW(image.take(items, {}, 2), IoError);
}

TEST_F(TagFolderTest, FilesOfRanksElsewhereAreNotLookedForAndTheirCheckpointIsWholeWhenTheyAreBroughtTogether) {
  const std::vector<std::string> roots = {root_ + "/a", root_ + "/b"};
  std::vector<Manifest> parts;
  for (int rank = 0; rank < 2; ++rank) {
    const std::string folder = begin_save(roots[rank], "t");
    const std::vector<float> values(1000, static_cast<float>(rank));
    const ShardStream stream({item_of("weight", values)}, {});
    const std::string name = "rank_" + std::to_string(rank) + ".safetensors";
    Manifest part;
    part.tag = "t";
    part.files.push_back({name, write_shard(folder + "/" + name, stream)});
    part.tensors.push_back({"weight", DType::kFloat32, {2000}, {{0, stream.begin_of(0), rank * 1000, 1000}}});
    parts.push_back(part);
  }
  for (int here = 0; here < 2; ++here) {
    for (int rank = 0; rank < 2; ++rank) finish_part(saving_folder(roots[here], "t"), rank, parts[rank]);
    CommitOptions options;
    options.ranks = 2;
    options.info = here == 0 ? R"({"own_folders": true})" : R"({"own_folders": true, "saved_at": "never"})";
    EXPECT_THROW(commit_save(roots[here], "t", options), CheckpointError);  // the other rank's file is not here
    options.elsewhere = {1 - here};
    commit_save(roots[here], "t", options);
    const auto problems = verify_tag(roots[here] + "/t", /*deep=*/true);
    ASSERT_EQ(problems.size(), 1u);
    EXPECT_NE(problems.front().find("must be brought together"), std::string::npos) << problems.front();
    EXPECT_THROW(CheckpointTensors(roots[here] + "/t", 1), CheckpointError);
  }
  for (const auto& entry : std::filesystem::recursive_directory_iterator(roots[1])) {
    if (!entry.is_regular_file()) continue;
    const std::filesystem::path target = roots[0] / std::filesystem::relative(entry.path(), roots[1]);
    std::filesystem::remove(target);  // MinGW's library does not overwrite, whatever copy_options say
    std::filesystem::copy_file(entry.path(), target);
  }
  EXPECT_TRUE(verify_tag(roots[0] + "/t", /*deep=*/true).empty());
  EXPECT_EQ(read_latest(roots[0]), "t");
  EXPECT_EQ(list_tags(roots[0]).size(), 1u);
}

TEST_F(TagFolderTest, WhatAManifestSaysOfItselfNeedNotBeOfTheKindThatIsExpected) {
  for (const char* info : {R"({"own_folders": "yes"})", R"({"own_folders": {}})", R"({"own_folders": 1})"}) {
    CommitOptions options;
    options.info = info;
    save("t", 1, 100, options);
    EXPECT_TRUE(verify_tag(root_ + "/t", /*deep=*/true).empty()) << info;
    EXPECT_EQ(list_tags(root_).at(0).problem, "") << info;
  }
}

}  // namespace
}  // namespace deepscale
