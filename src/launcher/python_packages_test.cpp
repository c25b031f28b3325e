#include "launcher/python_packages.h"

#include <gtest/gtest.h>

#include <fstream>

#include "platform/resources.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;

class PythonPackages : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    root_ = fs::canonical(fs::temp_directory_path()) / (std::string(test->name()) + std::to_string(this_process_id()));
    site_ = root_ / "env/lib/python3.11/site-packages";
    write("env/pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11.7\n");
    write("env/bin/python3", "");
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const fs::path& name, const std::string& text) const {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }
  void write_torch(const fs::path& folder) const {
    write(folder / "torch/__init__.py", "");
    write(folder / "torch/version.py",
          "from typing import Optional\n__all__ = ['__version__']\n__version__ = '2.11.0+cu130'\ndebug = False\n"
          "cuda: Optional[str] = '13.0'\ngit_version = 'abc'\nhip: Optional[str] = None\n");
  }

  fs::path root_;
  fs::path site_;
};

TEST_F(PythonPackages, AVirtualEnvironmentIsReadWithoutStartingPython) {
  write_torch(fs::relative(site_, root_));
  write("env/lib/python3.11/site-packages/distutils-precedence.pth", "import os\n");
  write("env/lib/python3.11/site-packages/torch-2.11.0+cu130.dist-info/METADATA", "");
  const auto python = read_python_installation(root_ / "env/bin/python3", {});
  ASSERT_TRUE(python.has_value());
  EXPECT_EQ(python->version, "3.11.7");
  EXPECT_FALSE(python->has_import_hooks);
  const auto torch = find_python_package(*python, "torch");
  ASSERT_EQ(torch, site_ / "torch");
  const TorchFacts facts = read_torch_version(*torch);
  EXPECT_EQ(facts.version, "2.11.0+cu130");
  EXPECT_EQ(facts.cuda, "13.0");
  EXPECT_EQ(facts.hip, "");
  EXPECT_EQ(distribution_version(*torch), "2.11.0+cu130");
  EXPECT_EQ(find_python_package(*python, "deepspeed"), std::nullopt);
}

TEST_F(PythonPackages, PythonpathComesFirstAndPthFilesAddFolders) {
  write("first/deepspeed/__init__.py", "");
  write("env/lib/python3.11/site-packages/deepspeed/__init__.py", "");
  write("elsewhere/torch/__init__.py", "");
  write("env/lib/python3.11/site-packages/links.pth",
        "# a comment\nimport os\n" + (root_ / "elsewhere").string() + "\n/nowhere/at/all\n");
  const auto python = read_python_installation(root_ / "env/bin/python3", {{"PYTHONPATH", (root_ / "first").string()}});
  ASSERT_TRUE(python.has_value());
  EXPECT_EQ(find_python_package(*python, "deepspeed"), root_ / "first/deepspeed");
  EXPECT_EQ(find_python_package(*python, "torch"), root_ / "elsewhere/torch");
  EXPECT_TRUE(python->has_import_hooks);
}

TEST_F(PythonPackages, APrefixIsReadByItsOnlyVersion) {
  write("prefix/bin/python3", "");
  write("prefix/lib/python3.12/encodings/__init__.py", "");
  write("prefix/lib/python3.12/site-packages/torch/__init__.py", "");
  const auto python = read_python_installation(root_ / "prefix/bin/python3", {});
  ASSERT_TRUE(python.has_value());
  EXPECT_EQ(python->version, "3.12");
  EXPECT_TRUE(find_python_package(*python, "torch").has_value());
}

TEST_F(PythonPackages, UnknownLayoutsAreLeftToTheInterpreter) {
  write("shims/python3", "#!/bin/sh\n");
  EXPECT_EQ(read_python_installation(root_ / "shims/python3", {}), std::nullopt);
  EXPECT_EQ(read_python_installation(root_ / "missing/python3", {}), std::nullopt);
  EXPECT_EQ(read_python_installation(root_ / "env/bin/python3", {{"PYTHONHOME", "/opt"}}), std::nullopt);
}

TEST_F(PythonPackages, DamagedVersionFilesGiveNothing) {
  write("env/torch/version.py", "__version__ = \ncuda = 'unfinished\n__version_info__ = '1'\n");
  EXPECT_EQ(read_torch_version(root_ / "env/torch").version, "");
  EXPECT_EQ(read_torch_version(root_ / "env/torch").cuda, "");
  EXPECT_EQ(read_torch_version(root_ / "nowhere").version, "");
}

}  // namespace
}  // namespace deepscale
