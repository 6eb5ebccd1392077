/* Queries and documents from a file of JSON lines, as `score` takes them, all at once. */
#ifndef QR_CLI_PAIRS_H
#define QR_CLI_PAIRS_H

#include "cli/input.h"

typedef struct cli_pairs {
    cli_pair *items;    /* [n] */
    qr_text *documents; /* [n] */
    qr_query *queries;  /* [n_queries]: neighbours with the same query are one */
    size_t n, n_queries, capacity;
} cli_pairs;

/* path: "-" is standard input. Reports errors itself, returns an exit code; free with cli_pairs_deinit in all cases. */
int cli_pairs_read(cli_pairs *pairs, const cli_args *args, const char *path);
/* Adds one by hand; cli_pairs_finish makes the queries. 0: out of memory. */
int cli_pairs_add(cli_pairs *pairs, const cli_pair *pair);
int cli_pairs_finish(cli_pairs *pairs);
void cli_pairs_deinit(cli_pairs *pairs);

#endif
