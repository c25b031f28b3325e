#include "checkpoint/tag_verify.h"

#include <gmock/gmock.h>

#include <atomic>

#include "base/error.h"
#include "checkpoint/tag_summary.h"
#include "checkpoint/test_support.h"
#include "checkpoint/tool_test_support.h"

namespace deepscale {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class TagVerifyTest : public test::CheckpointToolTest {
 protected:
  void save_big() const { save(root_, "t", 2, {{"fp32/layers.2.weight", ramp(6'000'000)}}); }
};

TEST_F(TagVerifyTest, EveryByteIsReadAndCounted) {
  save_big();
  std::atomic<int64_t> read = 0;
  const auto report = verify_checkpoint(root_ + "/t", {.threads = 3, .read = [&](int64_t bytes) { read += bytes; }});
  EXPECT_THAT(report.problems, IsEmpty());
  EXPECT_THAT(report.notes, IsEmpty());
  EXPECT_EQ(report.kind, CheckpointKind::kNative);
  EXPECT_TRUE(report.has_manifest);
  EXPECT_EQ(report.files, 3);
  EXPECT_EQ(report.tensors, 1);
  EXPECT_EQ(read, report.bytes);
  EXPECT_EQ(read, bytes_to_verify(root_ + "/t"));
  EXPECT_GT(read, 24'000'000);
}

TEST_F(TagVerifyTest, DamagedBlocksAreNamedOnceWithTheirBytes) {
  save_big();
  const std::string file = root_ + "/t/rank_00001.safetensors";
  flip(file, 5);
  flip(file, 65'536 + 9);
  flip(file, 3 * 65'536 - 1);
  const auto report = verify_checkpoint(root_ + "/t", {});
  ASSERT_THAT(report.problems, SizeIs(1));  // three blocks that follow one another
  EXPECT_THAT(report.problems[0], HasSubstr("rank_00001.safetensors is damaged between byte 0 and 196608"));
}

TEST_F(TagVerifyTest, MissingShortAndForeignFilesAreTold) {
  save_big();
  remove_file(root_ + "/t/common.pt");
  std::ofstream(root_ + "/t/rank_00000.safetensors", std::ios::app) << "x";
  std::ofstream(root_ + "/t/notes.txt") << "mine";
  const auto report = verify_checkpoint(root_ + "/t", {});
  EXPECT_THAT(report.problems, ElementsAre(HasSubstr("common.pt is missing"), HasSubstr("bytes, expected")));
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("notes.txt")));
}

TEST_F(TagVerifyTest, AManifestWhosePlacesAreNotThoseOfTheFileIsNoticed) {
  save(root_, "t", 1, {{"fp32/a", ramp(1000)}, {"fp32/b", ramp(1000)}});
  Manifest manifest = read_manifest(root_ + "/t");
  std::swap(manifest.tensors[0].slices, manifest.tensors[1].slices);
  std::ofstream(root_ + "/t/manifest.json", std::ios::binary) << manifest_text(manifest);
  const auto report = verify_checkpoint(root_ + "/t", {});
  ASSERT_THAT(report.problems, SizeIs(1));
  EXPECT_THAT(report.problems[0], HasSubstr("whose own header has not"));
}

TEST_F(TagVerifyTest, FilesWithoutAManifestAreComparedWithTheirOwnChecksums) {
  const std::string path = root_ + "/mp_rank_00_model_states.pt";
  PyDocument document = test::sample_document();
  document.root.node()->set("module", document.dict());
  write_torch_file(path, document);
  auto report = verify_checkpoint(root_, {});
  EXPECT_EQ(report.kind, CheckpointKind::kDeepSpeed);
  EXPECT_THAT(report.problems, IsEmpty());
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("no manifest")));
  auto archive = TorchArchive::open(path);
  const auto& tensor = archive.root().at("tensor").as_tensor("tensor");
  float first = -1.0f;
  archive.read(tensor, 1, 1, &first);
  EXPECT_EQ(first, 1.0f);
  // A bit of a tensor's value: nothing of the structure changes.
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  in.close();
  const float values[] = {2, 3, 4};
  const size_t place = bytes.find(std::string(reinterpret_cast<const char*>(values), sizeof(values)));
  ASSERT_NE(place, std::string::npos);
  flip(path, static_cast<int64_t>(place));
  report = verify_checkpoint(root_, {});
  ASSERT_THAT(report.problems, SizeIs(1));
  EXPECT_THAT(report.problems[0], HasSubstr("does not have its checksum"));
}

TEST_F(TagVerifyTest, SummariesSayWhatAFolderHolds) {
  save(root_, "old", 1, {{"fp32/a", ramp(10)}});
  save(root_, "new", 2, {{"fp32/a", ramp(10)}});
  make_directories(root_ + "/.third.saving");
  make_directories(root_ + "/something_else");
  remove_file(root_ + "/old/common.pt");
  std::map<std::string, TagSummary> found;
  for (const TagSummary& tag : summarize_tags(root_)) found[tag.name] = tag;
  ASSERT_THAT(found, SizeIs(3));
  EXPECT_EQ(found["new"].state, TagState::kIntact);
  EXPECT_TRUE(found["new"].is_latest);
  EXPECT_EQ(found["new"].ranks, 2);
  EXPECT_EQ(found["new"].steps, 7);
  EXPECT_EQ(found["old"].state, TagState::kDamaged);
  EXPECT_THAT(found["old"].problem, HasSubstr("common.pt is missing"));
  EXPECT_EQ(found[".third.saving"].state, TagState::kUnfinished);
}

TEST_F(TagVerifyTest, TheMeantCheckpointIsFound) {
  save(root_, "a", 1, {{"fp32/a", ramp(10)}});
  save(root_, "b", 1, {{"fp32/a", ramp(10)}});
  EXPECT_EQ(find_checkpoint(root_, ""), root_ + "/b");  // `latest`
  EXPECT_EQ(find_checkpoint(root_, "a"), root_ + "/a");
  EXPECT_EQ(find_checkpoint(root_ + "/a", ""), root_ + "/a");
  const auto message = [&](const std::string& path, const std::string& tag) -> std::string {
    try {
      return find_checkpoint(path, tag);
    } catch (const CheckpointError& error) {
      return error.what();
    }
  };
  EXPECT_THAT(message(root_, "c"), HasSubstr("it holds: a, b"));
  remove_file(root_ + "/latest");
  EXPECT_THAT(message(root_, ""), HasSubstr("no file `latest`"));
  EXPECT_THAT(message(root_ + "/nothing", ""), HasSubstr("there is no folder"));
}

}  // namespace
}  // namespace deepscale
