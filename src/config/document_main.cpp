// Prints docs/config.md; with --check FILE: fails when FILE is not the page that the option table gives.
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "config/document.h"

int main(int argc, char** argv) {
  const std::string page = deepscale::config::documentation();
  if (argc == 3 && std::string_view(argv[1]) == "--check") {
    std::ifstream file(argv[2], std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    if (file && text.str() == page) return 0;
    std::fprintf(stderr, "%s is not what the option table says; run: deepscale_config_doc > %s\n", argv[2], argv[2]);
    return 1;
  }
  if (argc != 1) {
    std::fprintf(stderr, "usage: deepscale_config_doc [--check FILE]\n");
    return 2;
  }
  std::fwrite(page.data(), 1, page.size(), stdout);
  return 0;
}
