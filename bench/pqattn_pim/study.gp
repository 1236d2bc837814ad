# SPDX-License-Identifier: MIT
# Plots of `pqattn-pim study --output DIR`: reads DIR/*.csv, writes SVG files into plot_dir.
#   gnuplot -e "data_dir='build/pim'; plot_dir='docs/pim'" bench/pqattn_pim/study.gp
set datafile separator ","
set terminal svg size 760,480 font "sans-serif,13" background "white"
set grid
set key top left

set output plot_dir . "/lookups.svg"
set title "One head, 32Ki tokens, m=32, K=512: emulated speed against dense attention in PIM"
set xlabel "look-ups per column slot (g)"
set ylabel "times as fast as dense"
set logscale x 2
set yrange [0:*]
plot data_dir . "/lookups.csv" every ::1 using 1:2 with linespoints title "values reconstructed", \
     "" every ::1 using 1:4 with linespoints title "values by histogram, 1 slot", \
     "" every ::1 using 1:5 with linespoints title "histogram, all banks' sums added on the way", \
     "" every ::1 using 1:7 with linespoints title "GQA 4, shared look-ups", \
     "" every ::1 using 1:8 with linespoints title "GQA 4, shared, all banks added", \
     "" every ::1 using 1:9 with linespoints title "tokens striped", \
     "" every ::1 using 1:10 with linespoints title "keys before RoPE", \
     1 with lines dashtype 2 linecolor "gray40" title "dense", \
     3.4 with lines dashtype 3 linecolor "gray40" title "the published 3.4"

set output plot_dir . "/systems.svg"
set title "Attention of a decode step, batch 16 (emulated or computed)"
set xlabel "context, Ki tokens"
set ylabel "milliseconds"
set logscale y
set autoscale y
kibi(text) = real(text[1:strstrt(text, "i") - 2]) * (strstrt(text, "Mi") > 0 ? 1024 : 1)
only(y, batch) = batch == 16 ? y : NaN
plot data_dir . "/systems.csv" every ::1 using (kibi(stringcolumn(1))):(only($4, $2)) with linespoints title "dense in PIM", \
     "" every ::1 using (kibi(stringcolumn(1))):(only($7, $2)) with linespoints title "dense in PIM, 4.5 bits", \
     "" every ::1 using (kibi(stringcolumn(1))):(only($9, $2)) with linespoints title "PQ in PIM, g=1", \
     "" every ::1 using (kibi(stringcolumn(1))):(only($10, $2)) with linespoints title "PQ in PIM, g=4", \
     "" every ::1 using (kibi(stringcolumn(1))):(only($13, $2)) with linespoints title "GPU, resident", \
     "" every ::1 using (kibi(stringcolumn(1))):(only($16, $2)) with linespoints title "GPU, offloaded over 64 GB/s", \
     "" every ::1 using (kibi(stringcolumn(1))):(only($17, $2)) with linespoints title "GPU, offloaded over 256 GB/s"

set output plot_dir . "/grouping.svg"
set title "Query heads that share look-ups: speed against dense attention in PIM, 32Ki tokens"
set xlabel "query heads per KV head"
set ylabel "times as fast as dense"
unset logscale y
set yrange [0:*]
plot data_dir . "/grouping.csv" every ::1 using 1:2 with linespoints title "g=1", \
     "" every ::1 using 1:3 with linespoints title "g=4", \
     "" every ::1 using 1:5 with linespoints title "g=4, all banks' sums added", \
     "" every ::1 using 1:7 with linespoints title "g=4, against dense that reads once for all heads", \
     1 with lines dashtype 2 linecolor "gray40" title "dense", \
     3.4 with lines dashtype 3 linecolor "gray40" title "the published 3.4"

set output plot_dir . "/rotation.svg"
set title "Score pass of one head, 32Ki tokens, K=256, one query row"
set style data histograms
set style fill solid 0.6
set ylabel "microseconds"
unset logscale x
set xtics rotate by -15
first(text) = real(text[1:strstrt(text, " ") - 1])
name(kind, m, stages) = kind . ", m=" . m . (stages + 0 > 1 ? ", 2 stages" : "")
plot data_dir . "/rotation.csv" every ::1 using (first(stringcolumn(5))):xtic(name(stringcolumn(1), stringcolumn(2), stringcolumn(3))) title "g=1", \
     "" every ::1 using (first(stringcolumn(6))) title "g=4", \
     "" every ::1 using (first(stringcolumn(7))) title "g=16"
set xtics norotate
set logscale xy
set autoscale y

set output plot_dir . "/training.svg"
set title "Training and encoding one layer in PIM, beside the GPU's prefill of it"
set xlabel "prompt, Ki tokens"
set ylabel "milliseconds"
plot data_dir . "/training.csv" every ::1 using (kibi(stringcolumn(1))):($2 + $4) with linespoints title "train and encode", \
     "" every ::1 using (kibi(stringcolumn(1))):($3 + $4) with linespoints title "train on 8Ki and encode", \
     "" every ::1 using (kibi(stringcolumn(1))):($5 + $7) with linespoints title "argmin in banks, all channels", \
     "" every ::1 using (kibi(stringcolumn(1))):($6 + $7) with linespoints title "the same, trained on 8Ki", \
     "" every ::1 using (kibi(stringcolumn(1))):8 with linespoints title "GPU prefill of the layer", \
     "" every ::1 using (kibi(stringcolumn(1))):9 with linespoints title "of it attention"
