// SPDX-License-Identifier: MIT
// The program pqattn-study as its users meet it: command line in, text and exit code out.
#include <sys/wait.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "support/random_data.hpp"
#include "support/run_program.hpp"
#include "support/scratch_folder.hpp"
#include "support/shared_data.hpp"

using Catch::Matchers::WithinRel;
using nlohmann::json;

namespace {

using pqattn_test::scratch_folder;

struct outcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

outcome run(const scratch_folder& folder, const std::string& arguments) {
  const std::string command = "'" + pqattn_test::program_path("pqattn-study") + "' " + arguments + " >'" +
                              folder.file("out") + "' 2>'" + folder.file("err") + "'";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_all(folder.file("out")), read_all(folder.file("err"))};
}

json run_json(const scratch_folder& folder, const std::string& arguments) {
  const outcome done = run(folder, arguments + " --json");
  INFO(arguments << "\n" << done.err);
  REQUIRE(done.exit_code == 0);
  CHECK(done.err.empty());
  return json::parse(done.out);
}

std::string inputs(const std::string& folder) {
  return "--keys '" + folder + "/keys.npy' --values '" + folder + "/values.npy' --queries '" + folder +
         "/queries.npy' ";
}

std::string shipped() {
  return inputs((pqattn_test::test_data_folder() / "tiny_lm" / "context0" / "layer1").string());
}

std::string npy_header(const std::string& type, const std::string& shape, const char* fortran = "False") {
  std::string header = "{'descr': '" + type + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }";
  header.resize(117, ' ');
  header += '\n';
  return std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header;
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string floats(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), 4 * values.size());
}

void write_floats(const std::string& path, const std::string& shape, const std::vector<float>& values) {
  write_file(path, npy_header("<f4", shape) + floats(values));
}

/// A small layer of random numbers: 2 KV heads of 100 tokens, 6 query heads, keys 20 and values 12 wide.
void write_layer(const scratch_folder& folder, pqattn_test::random_data& random) {
  write_floats(folder.file("keys.npy"), "(2, 100, 20)", random.normals(2 * 100 * 20));
  write_floats(folder.file("values.npy"), "(2, 100, 12)", random.normals(2 * 100 * 12));
  write_floats(folder.file("queries.npy"), "(6, 100, 20)", random.normals(6 * 100 * 20));
}

std::string layer(const scratch_folder& folder) {
  return inputs(std::filesystem::path(folder.file("keys.npy")).parent_path().string());
}

void require_refused(const scratch_folder& folder, const std::string& arguments, const std::string& words) {
  const outcome done = run(folder, arguments);
  INFO(arguments << "\n" << done.err);
  CHECK(done.exit_code == 2);
  CHECK(done.out.empty());
  CHECK(std::count(done.err.begin(), done.err.end(), '\n') == 1);
  CHECK(done.err.rfind("pqattn-study: ", 0) == 0);
  CHECK(done.err.find(words) != std::string::npos);
}

}  // namespace

TEST_CASE("pqattn-study explains itself", "[study][program]") {
  const scratch_folder folder;
  const outcome help = run(folder, "--help");
  CHECK(help.exit_code == 0);
  for (const char* word : {"--keys", "--kv-heads", "--train-tokens", "--rope-theta", "--target-bits",
                           "Examples:", "pqattn-study --keys", "Exit codes"}) {
    CAPTURE(word);
    CHECK(help.out.find(word) != std::string::npos);
  }
  CHECK(run(folder, "--version").exit_code == 0);
}

TEST_CASE("pqattn-study with the exact method finds no error", "[study][program]") {
  const scratch_folder folder;
  for (const char* more : {"", "--rope half"}) {
    const json result = run_json(folder, shipped() + "--method exact " + more);
    CHECK(result.at("method") == "exact");
    CHECK(result.at("tokens") == 2048);
    CHECK(result.at("output_nmse").get<double>() < 1e-25);
    CHECK(result.at("attention_kl").get<double>() < 1e-12);
    CHECK(result.at("top1_agreement") == 1.0);
    CHECK(result.at("bits_per_element") == 16.0);
    CHECK(result.at("bits_per_element_codes") == 16.0);
  }
}

TEST_CASE("pqattn-study on real activations: product quantization at 2 bits", "[study][program]") {
  const scratch_folder folder;
  const json result = run_json(folder, shipped() + "--rope half --kv-heads 2");
  CHECK(result.at("method") == "pq");
  CHECK(result.at("bits_per_element_codes") == 2.0);
  // 2008 coded tokens at 2 bits, 40 at 16, four codebooks of 64 x 256 f16 numbers over 2 x 2 x 2048 x 64 elements.
  const double expected = (2008 * 2.0 + 40 * 16.0 + 256 * 16.0) / 2048;
  CHECK_THAT(result.at("bits_per_element").get<double>(), WithinRel(expected, 1e-12));
  CHECK(result.at("output_nmse").get<double>() < 0.0025);
  CHECK(result.at("output_nmse_pooled").get<double>() < 0.0012);
  CHECK(result.at("attention_kl").get<double>() < 0.004);
  CHECK(result.at("top1_agreement").get<double>() > 0.98);
  CHECK(result.at("query_rows") == 4 * 512);
  CHECK(result.at("heads").size() == 4);

  const json again = run_json(folder, shipped() + "--rope half");
  for (const char* key : {"output_nmse", "attention_kl", "codebook_mse"}) {
    CHECK(result.at(key) == again.at(key));
  }
  const json after_rope = run_json(folder, shipped());
  CHECK(after_rope.at("attention_kl").get<double>() > 3.0 * result.at("attention_kl").get<double>());
}

TEST_CASE("pqattn-study codes one side and leaves the other exact", "[study][program]") {
  const scratch_folder folder;
  const json both = run_json(folder, shipped() + "--method q4_0");
  const json keys = run_json(folder, shipped() + "--method q4_0 --code keys");
  const json values = run_json(folder, shipped() + "--method q4_0 --code values");
  CHECK(keys.at("attention_kl") == both.at("attention_kl"));
  CHECK(values.at("attention_kl").get<double>() < 1e-12);
  CHECK(keys.at("output_nmse").get<double>() < both.at("output_nmse").get<double>());
  CHECK(values.at("output_nmse").get<double>() < both.at("output_nmse").get<double>());
  CHECK_THAT(both.at("bits_per_element").get<double>(), WithinRel((2008 * 4.5 + 40 * 16.0) / 2048, 1e-12));
  CHECK_THAT(keys.at("bits_per_element").get<double>(),
             WithinRel(0.5 * (16.0 + both.at("bits_per_element").get<double>()), 1e-12));
}

TEST_CASE("pqattn-study orders the baselines on real activations", "[study][program]") {
  const scratch_folder folder;
  const auto kl = [&](const std::string& method) {
    return run_json(folder, shipped() + "--method " + method).at("attention_kl").get<double>();
  };
  CHECK(kl("q8_0") < 1e-4);
  CHECK(kl("q4_0_rot") < 0.01);
  CHECK(kl("kivi4") < kl("kivi2"));
  const double turbo4 = kl("turbo4");
  const double turbo3 = kl("turbo3");
  CHECK(turbo4 < turbo3);
  CHECK(turbo3 < kl("turbo2"));
}

TEST_CASE("pqattn-study on real activations: pq_best", "[study][program]") {
  const scratch_folder folder;
  const auto best = [&](const std::string& more) {
    return run_json(folder, shipped() + "--rope half --method pq_best " + more);
  };
  const auto figure = [](const json& result, const char* name) { return result.at(name).get<double>(); };
  const json plain = run_json(folder, shipped() + "--rope half --method pq_plain");
  const json two = best("--target-bits 2");
  CHECK(figure(two, "bits_per_element_codes") <= 2.0);
  CHECK(figure(two, "bits_per_element_codes") > 1.95);
  CHECK(figure(two, "attention_kl") < 0.4 * figure(plain, "attention_kl"));
  CHECK(figure(two, "output_nmse") < 0.5 * figure(plain, "output_nmse"));
  // Everything: i8 codebooks with two floats of scale per stage and channel, the metric's triangle in f16, the
  // rotation in bytes with a float of scale per direction, its mean, 40 exact tokens.
  const double key_bits = 2008 * 128.0 + 8.0 * (4 * 64 * 256 + 8 * 4 * 64) + 16.0 * 64 * 65 / 2 + 40 * 64 * 16.0;
  const double value_bits =
      2008 * 128.0 + 8.0 * (2 * 64 * 256 + 8 * 2 * 64) + 8.0 * 64 * 64 + 64.0 * 64 + 40 * 64 * 16.0;
  const json shaped = best("--subvectors 4 --stages 4 --value-subvectors 8 --value-stages 2");
  CHECK(shaped.at("bits_per_element_codes") == 2.0);
  CHECK_THAT(figure(shaped, "bits_per_element"), WithinRel((key_bits + value_bits) / (2 * 2048 * 64), 1e-12));

  // Each part earns its place.
  CHECK(figure(best("--target-bits 2 --metric none"), "attention_kl") > 1.2 * figure(two, "attention_kl"));
  CHECK(figure(best("--target-bits 2 --code values --value-rotation none"), "output_nmse") >
        figure(best("--target-bits 2 --code values"), "output_nmse"));
  double last = 1.0;
  for (const char* bits : {"1", "1.7", "2.5", "4"}) {
    const json result = best(std::string("--target-bits ") + bits);
    CAPTURE(bits);
    CHECK(std::abs(figure(result, "bits_per_element_codes") - std::stod(bits)) < 0.07);
    CHECK(figure(result, "bits_per_element_codes") <= std::stod(bits));
    CHECK(figure(result, "attention_kl") < last);
    last = figure(result, "attention_kl");
  }
}

TEST_CASE("pqattn-study: pq_best within other formats' memory, everything counted, is closer", "[study][program]") {
  const scratch_folder folder;
  const auto figure = [](const json& result, const char* name) { return result.at(name).get<double>(); };
  for (const auto& [bits, other] :
       {std::pair{"4.7", "q4_0"}, {"3.2", "kivi2"}, {"2.5", "turbo2"}, {"3.2", "turbo3"}, {"5.2", "kivi4"}}) {
    CAPTURE(bits, other);
    const json ours = run_json(folder, shipped() + "--rope half --method pq_best --target-all-bits " + bits);
    const json theirs = run_json(folder, shipped() + "--method " + other);
    CHECK(figure(ours, "bits_per_element") <= std::stod(bits));
    CHECK(figure(ours, "bits_per_element") <= figure(theirs, "bits_per_element"));
    CHECK(figure(ours, "output_nmse") < 0.7 * figure(theirs, "output_nmse"));
    CHECK(figure(ours, "attention_kl") < 0.7 * figure(theirs, "attention_kl"));
  }
  require_refused(folder, shipped() + "--method pq_best --target-all-bits 1 --sinks 200", "--target-all-bits");
  require_refused(folder, shipped() + "--method pq --target-all-bits 4", "--target-all-bits");
  require_refused(folder, shipped() + "--method pq_best --target-all-bits 4 --target-bits 2", "--target-bits");
}

TEST_CASE("pqattn-study never lets queries that are judged choose the codes", "[study][program]") {
  // The same keys and values with other queries after position n: the codes, and so the codebook error, are the same.
  const scratch_folder folder;
  pqattn_test::random_data random(23);
  CAPTURE(random.seed());
  write_layer(folder, random);
  const std::string arguments = layer(folder) + "--method pq_best --target-bits 2 --train-tokens 70 --rope half";
  const json before = run_json(folder, arguments);
  const std::string path = folder.file("queries.npy");
  std::string bytes = read_all(path);
  const auto shake = [&](std::size_t first, std::size_t last) {
    const std::vector<float> noise = random.normals((last - first) * 20);
    for (std::size_t head = 0; head < 6; ++head) {
      bytes.replace(128 + 4 * 20 * (head * 100 + first), 4 * noise.size(), floats(noise));
    }
    write_file(path, bytes);
  };
  shake(70, 100);
  const json after = run_json(folder, arguments);
  CHECK(after.at("codebook_mse") == before.at("codebook_mse"));
  CHECK(after.at("attention_kl") != before.at("attention_kl"));
  shake(0, 70);
  CHECK(run_json(folder, arguments).at("codebook_mse") != before.at("codebook_mse"));
}

TEST_CASE("pqattn-study shares one codebook between heads", "[study][program]") {
  const scratch_folder folder;
  const json own = run_json(folder, shipped() + "--rope half --method pq_plain");
  const json shared = run_json(folder, shipped() + "--rope half --method pq_shared");
  CHECK(shared.at("keys").at("codebook_bytes") == 0.5 * own.at("keys").at("codebook_bytes").get<double>());
  CHECK(shared.at("bits_per_element_codes") == own.at("bits_per_element_codes"));
  CHECK(shared.at("attention_kl").get<double>() < 0.1);
  const std::string files = (pqattn_test::test_data_folder() / "tiny_lm" / "context0" / "layer1").string();
  const json offline = run_json(folder, shipped() + "--rope half --method pq_shared --calibration-keys '" + files +
                                            "/keys.npy' --calibration-values '" + files + "/values.npy'");
  // The file it is judged on taught it, later tokens included.
  CHECK(offline.at("codebook_mse").get<double>() < shared.at("codebook_mse").get<double>());
  CHECK(offline.at("attention_kl").get<double>() < 1.5 * shared.at("attention_kl").get<double>());
  // Refined by each head for itself it costs and serves like a codebook of its own.
  const json refined = run_json(folder, shipped() + "--rope half --method pq_shared --refine 4");
  CHECK(refined.at("keys").at("codebook_bytes") == own.at("keys").at("codebook_bytes"));
  CHECK(refined.at("codebook_mse").get<double>() < shared.at("codebook_mse").get<double>());
  CHECK(refined.at("codebook_mse").get<double>() < 1.1 * own.at("codebook_mse").get<double>());
}

TEST_CASE("pqattn-study cuts the training range into windows with codebooks of their own", "[study][program]") {
  const scratch_folder folder;
  const std::string plain = shipped() + "--method pq_plain --bits 6 ";
  const json one = run_json(folder, plain);
  const json three = run_json(folder, plain + "--windows 3");
  CHECK(three.at("keys").at("codebook_bytes") == 3.0 * one.at("keys").at("codebook_bytes").get<double>());
  CHECK(three.at("bits_per_element_codes") == one.at("bits_per_element_codes"));
  CHECK(three.at("output_nmse") != one.at("output_nmse"));
  // Codebooks that fit their own window code it better: the whole is coded with less error than by one codebook.
  CHECK(three.at("codebook_mse").get<double>() < 1.1 * one.at("codebook_mse").get<double>());
  const outcome narrow = run(folder, plain + "--windows 1000");
  CHECK(narrow.exit_code == 2);
  CHECK(narrow.err.find("training") != std::string::npos);
}

TEST_CASE("pqattn-study takes odd shapes and settings", "[study][program]") {
  const scratch_folder folder;
  pqattn_test::random_data random(20);
  CAPTURE(random.seed());
  write_layer(folder, random);
  for (const char* more :
       {"--bits 4", "--bits 3 --subvectors 3 --value-subvectors 5 --value-bits 5", "--bits 1 --subvectors 20",
        "--bits 4 --rope interleaved --rope-theta 500", "--bits 4 --weights none --codebooks f32",
        "--bits 4 --codebooks i8", "--bits 4 --sinks 0 --recent 0", "--bits 4 --sinks 0 --recent 1000",
        "--bits 4 --train-tokens 99", "--method pq_plain --bits 5", "--method turbo2 --rope half", "--method kivi2",
        "--method pq_shared --bits 5", "--method pq_best --target-bits 1.3", "--method pq_best --target-bits 5.9",
        "--method pq_best --rope interleaved --metric exact", "--method pq_best --weights attention --codebooks f32",
        "--method pq_best --train-tokens 12 --target-bits 3 --joint-passes 0 --sweeps 0"}) {
    const json result = run_json(folder, layer(folder) + more);
    CAPTURE(more);
    CHECK(result.at("heads").size() == 6);
    // Books of 12 tokens say little about other random tokens; what is asked of them is a finite answer.
    const bool trained_on_little = std::string_view(more).find("--train-tokens 12 ") != std::string_view::npos;
    CHECK(result.at("output_nmse").get<double>() < (trained_on_little ? 10.0 : 1.5));
    CHECK(result.at("output_nmse").get<double>() >= 0.0);
  }
  const json everything_exact = run_json(folder, layer(folder) + "--bits 4 --recent 1000");
  CHECK(everything_exact.at("output_nmse").get<double>() < 1e-25);
  CHECK(everything_exact.at("bits_per_element_codes") == 0.0);
  const outcome table = run(folder, layer(folder) + "--bits 4");
  CHECK(table.exit_code == 0);
  CHECK(table.out.find("bits per element") != std::string::npos);
}

TEST_CASE("pqattn-study refuses wrong usage in one line", "[study][program]") {
  const scratch_folder folder;
  pqattn_test::random_data random(21);
  CAPTURE(random.seed());
  write_layer(folder, random);
  const std::string files = layer(folder);
  require_refused(folder, "", "--keys");
  require_refused(folder, files + "--method pq4_0", "--method");
  require_refused(folder, files + "--bits 4 --target-bits 2", "--target-bits");
  require_refused(folder, files + "--method pq_best --target-bits 7", "--target-bits");
  require_refused(folder, files + "--bits 4 --calibration-keys x.npy", "pq_shared");
  require_refused(folder, files + "--bits 4 --refine 4", "pq_shared");
  require_refused(folder, files + "--method pq_best --target-all-bits 3 --codebooks f32", "--target-all-bits");
  require_refused(folder, files + "--method pq_best --target-all-bits 3 --subvectors 8", "--target-all-bits");
  require_refused(folder, files + "--method pq_best --target-all-bits 3 --windows 2", "--target-all-bits");
  require_refused(folder, files + "--target-all-bits 3 --suggest '" + folder.file("policy.json") + "'",
                  "--target-bits");
  require_refused(folder, files + "--method pq_shared --bits 4 --calibration-keys x.npy", "--calibration-values");
  require_refused(folder,
                  files + "--method pq_shared --bits 4 --calibration-keys '" + folder.file("values.npy") +
                      "' --calibration-values '" + folder.file("values.npy") + "'",
                  "12 channels");
  require_refused(folder, files + "--bits 17", "--bits");
  require_refused(folder, files + "--bits 4 --subvectors 21", "subvectors");
  require_refused(folder, files + "--kv-heads 3", "--kv-heads");
  require_refused(folder, files + "--bits 4 --train-tokens 100", "--train-tokens");
  require_refused(folder, files + "--bits 8", "samples");  // 75 tokens cannot teach 256 centroids
  require_refused(folder, files + "--sinks -1", "--sinks");
  require_refused(folder, files + "--unknown", "--unknown");
}

TEST_CASE("pqattn-study refuses bad files in one line", "[study][program]") {
  const scratch_folder folder;
  pqattn_test::random_data random(22);
  CAPTURE(random.seed());
  write_layer(folder, random);
  const std::string files = layer(folder) + "--bits 4 ";
  REQUIRE(run(folder, files).exit_code == 0);
  const std::string path = folder.file("keys.npy");
  const std::string good = read_all(path);
  const auto with = [&](const std::string& bytes, const std::string& words) {
    write_file(path, bytes);
    require_refused(folder, files, words);
    require_refused(folder, files, "keys.npy");
    write_file(path, good);
  };
  with(good.substr(0, 1000), "truncated");
  with(good.substr(0, 60), "truncated");
  with("", "signature");
  with("hello", "signature");
  with(npy_header("<f8", "(2, 100, 20)") + std::string(32000, '\0'), "element type");
  with(npy_header("<i4", "(2, 100, 20)") + std::string(16000, '\0'), "int32");
  with(npy_header("<f4", "(2, 100, 20)", "True") + std::string(16000, '\0'), "Fortran");
  with(npy_header("<f4", "(200, 20)") + std::string(16000, '\0'), "axes");
  with(npy_header("<f4", "(2, 10, 10, 20)") + std::string(16000, '\0'), "axes");
  with(npy_header("<f4", "(2, 0, 20)"), "empty");
  with(npy_header("<f4", "(2, 1, 2000)") + std::string(16000, '\0'), "channels");
  with(npy_header("<f4", "(4000000000, 4000000000, 4000000000)"), "memory");
  std::string huge_header = std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff", 12) + good.substr(10);
  with(huge_header, "header");

  std::vector<float> values(2 * 100 * 20, 1.0f);
  values[20 * 100 + 3 * 20 + 7] = std::numeric_limits<float>::quiet_NaN();
  with(npy_header("<f4", "(2, 100, 20)") + floats(values), "(1, 3, 7) is NaN");
  values[5] = std::numeric_limits<float>::infinity();
  with(npy_header("<f4", "(2, 100, 20)") + floats(values), "(0, 0, 5) is infinite");

  // Good files that do not fit each other: the one that disagrees with the keys is named.
  const auto mismatch = [&](const std::string& shape, const std::string& words) {
    write_file(path, npy_header("<f4", shape) + good.substr(128));
    require_refused(folder, files, words);
    write_file(path, good);
  };
  mismatch("(2, 50, 40)", "values.npy: has 100 tokens, the keys have 50");
  mismatch("(5, 40, 20)", "values.npy: has 2 KV heads, the keys have 5");
  mismatch("(2, 200, 10)", "values.npy: has 100 tokens, the keys have 200");
  write_floats(folder.file("queries.npy"), "(5, 100, 20)", random.normals(5 * 100 * 20));
  require_refused(folder, files, "queries.npy: has 5 query heads");
  write_floats(folder.file("queries.npy"), "(6, 100, 10)", random.normals(6 * 100 * 10));
  require_refused(folder, files, "queries.npy: has 10 channels");
  std::filesystem::remove(folder.file("queries.npy"));
  require_refused(folder, files, "queries.npy: file cannot be opened");
}

TEST_CASE("pqattn-study finds the rotation of the keys by itself for pq_best", "[study][program]") {
  const scratch_folder folder;
  const std::string arguments = shipped() + "--method pq_best --target-bits 1 --joint-passes 0 --code keys ";
  const json found = run_json(folder, arguments);
  CHECK(found.at("rope") == "half");
  CHECK(found.at("rope_theta") == 10000.0);
  CHECK(found.at("attention_kl") == run_json(folder, arguments + "--rope half").at("attention_kl"));
  pqattn_test::random_data random(81);
  write_layer(folder, random);
  CHECK(run_json(folder, layer(folder) + "--method pq_best --target-bits 1").at("rope") == "none");
}

TEST_CASE("pqattn-study suggests a policy and follows it", "[study][program]") {
  const scratch_folder folder;
  pqattn_test::random_data random(82);
  CAPTURE(random.seed());
  write_layer(folder, random);
  const std::string files = layer(folder) + "--method pq_best ";
  const std::string policy = folder.file("policy.json");
  const outcome done = run(folder, files + "--target-bits 2 --layer 5 --suggest '" + policy + "'");
  INFO(done.err);
  REQUIRE(done.exit_code == 0);
  CHECK(done.out.find("layer 5 kv 1 V") != std::string::npos);
  CHECK(done.out.find("code bits per element") != std::string::npos);
  const json written = json::parse(read_all(policy));
  CHECK(written.at("heads").size() == 2);
  const json followed = run_json(folder, files + "--layer 5 --policy '" + policy + "'");
  CHECK(followed.at("bits_per_element_codes").get<double>() <= 2.1);
  require_refused(folder, files + "--policy '" + policy + "'", "says nothing of layer 0");
  require_refused(folder, files + "--policy '" + folder.file("none.json") + "'", "cannot be read");
  write_file(folder.file("bad.json"), "{}");
  require_refused(folder, files + "--policy '" + folder.file("bad.json") + "'", "corrupt_data");
  require_refused(folder, layer(folder) + "--method pq --policy '" + policy + "'", "--policy");
  require_refused(folder, layer(folder) + "--method pq --suggest '" + policy + "'", "--suggest");
}
