/* Attention over one KV head in runs of keys, with an online softmax: what kernels.h promises, written once for what multiplies and for the
 * type of K, V and the weights. An including file defines, over the vectors of kernels_impl.h,
 *   begin(), end()                                       around all of it
 *   load_queries(spare, q, n, head_dim)                  n <= Q_ROWS vectors in the order that `scores` wants, at q or at spare
 *   scores(s, q, kt, n_keys, head_dim, n_rows)           s [n_rows][KEY_RUN] = q . k; past n_keys anything may come out
 *   softmax(p, s, n, seen, scale, &max, &sum, acc, v_stride)
 *                                                        one row, one run: p = e^(scale * (s - max)) for those of n scores that are seen
 *                                                        (attend_keys.h), else 0; adds to the sum; a new maximum rescales it and acc
 *   values(acc, p, v, n_keys, v_stride, n_rows, spare)   acc [n_rows][v_stride] += p [n_rows][KEY_RUN] . v; past n_keys p is 0, but what
 *                                                        stands there in v is nobody's and could be an infinity
 * and ELEMENT_BYTES (of K, V and p), ROWS (n_rows is a multiple of it), Q_ROWS (vectors treated together), KEY_STEP (p is filled up to a
 * multiple of it). Sums must take the same steps for every row, and the limits of runs depend on the key's index only: a row's rounding
 * does not depend on its neighbours. */
enum { KEY_RUN = QR_ATTEND_RUN };
_Static_assert((int) Q_ROWS <= (int) QR_ATTEND_ROWS && (int) Q_ROWS % (int) ROWS == 0 && (int) KEY_RUN % (int) KEY_STEP == 0,
               "whole groups of rows and keys, within the scratch");

static void attend(const qr_attend *a)
{
    size_t hd = a->head_dim, vs = a->v_stride, n_vectors = a->n_rows * a->n_group;
    float *acc = a->scratch, *s = acc + Q_ROWS * vs, *p = s + Q_ROWS * KEY_RUN, *order = p + Q_ROWS * KEY_RUN, *spare = order + Q_ROWS * vs;
    begin();
    for (size_t first = 0; first < n_vectors; first += Q_ROWS) {
        size_t n = n_vectors - first < Q_ROWS ? n_vectors - first : Q_ROWS, padded = (n + ROWS - 1) / ROWS * ROWS;
        float max[Q_ROWS], sum[Q_ROWS];
        for (size_t i = 0; i < padded; i++) {
            max[i] = -INFINITY;
            sum[i] = 0;
        }
        memset(acc, 0, padded * vs * sizeof *acc);
        const void *q = load_queries(order, (const unsigned char *) a->q + first * hd * ELEMENT_BYTES, n, hd);
        size_t last_row = (first + n - 1) / a->n_group;
        size_t own = (a->prefix.n_keys + KEY_STEP - 1) / KEY_STEP * KEY_STEP;
        const key_list keys = {{0, own}, {a->prefix.n_keys, own + a->first_pos + last_row + 1}};
        const qr_kv *parts[2] = {&a->prefix, &a->own};
        for (size_t k0 = 0; k0 < keys.ends[1]; k0 += KEY_RUN) {
            size_t k1 = keys.ends[1] - k0 < KEY_RUN ? keys.ends[1] : k0 + KEY_RUN;
            size_t filled = (k1 - k0 + KEY_STEP - 1) / KEY_STEP * KEY_STEP;
            const key_piece pieces[2] = {piece_of(&keys, 0, k0, k1), piece_of(&keys, 1, k0, k1)};
            for (int i = 0; i < 2; i++) {
                if (pieces[i].n == 0) continue;
                const unsigned char *kt = (const unsigned char *) parts[i]->kt + pieces[i].first * hd * ELEMENT_BYTES;
                scores(s + pieces[i].at, q, kt, pieces[i].n, hd, padded);
            }
            for (size_t i = 0; i < padded; i++) {
                size_t row = (first + (i < n ? i : n - 1)) / a->n_group;
                const seen_keys seen = seen_in_run(&keys, own + a->first_pos + row + 1, k0, k1);
                softmax((unsigned char *) p + i * KEY_RUN * ELEMENT_BYTES, s + i * KEY_RUN, filled, &seen, a->scale, &max[i], &sum[i],
                        acc + i * vs, vs);
            }
            for (int i = 0; i < 2; i++) {
                if (pieces[i].n == 0) continue;
                const unsigned char *v = (const unsigned char *) parts[i]->v + pieces[i].first * vs * ELEMENT_BYTES;
                values(acc, (unsigned char *) p + pieces[i].at * ELEMENT_BYTES, v, pieces[i].n, vs, padded, spare);
            }
        }
        for (size_t i = 0; i < n; i++) {
            qr_row to = qr_row_at(&a->out, a->out_row + (first + i) / a->n_group);
            size_t column = a->out_column + (first + i) % a->n_group * hd;
            vf inv = v_set1(1.0f / sum[i]);
            for (size_t d = 0; d < hd; d += VN)
                v_store_row(to, column + d, v_mul(v_load(acc + i * vs + d), inv), hd - d < VN ? hd - d : VN);
        }
    }
    end();
}
