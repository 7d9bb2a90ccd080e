-- Print one line of JSON at the end of a wrk run. Times are in microseconds, as wrk keeps them.
-- wrk counts a status above 399 as an error; the servers measured here never answer with 1xx or 3xx.
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"duration_us":%d,"requests":%d,"bytes":%d,'
      .. '"p50":%d,"p90":%d,"p99":%d,"p99.9":%d,"max":%d,'
      .. '"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}\n',
    summary.duration, summary.requests, summary.bytes,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max,
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
