/* SPDX-License-Identifier: MIT */
#include <pqattn/c/pqattn.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  pq_error error;
  pq_cache* cache = NULL;
  pq_cache_config config;
  pq_cache_config_default(&config); /* no shape yet */
  const pq_status outcome = pq_cache_create(&config, NULL, NULL, &cache, &error);
  printf("pqattn %s on %s: %s\n", pq_version_string(), pq_arch_name(), error.message);
  return outcome == PQ_INVALID_ARGUMENT && strcmp(pq_status_name(outcome), "invalid_argument") == 0 ? 0 : 1;
}
