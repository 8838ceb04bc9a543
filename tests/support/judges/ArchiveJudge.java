import com.google.gson.GsonBuilder;
import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.pytorch.serve.archive.model.Manifest;
import org.pytorch.serve.archive.model.ModelArchive;
import org.pytorch.serve.archive.model.ModelConfig;
import org.pytorch.serve.archive.utils.ArchiveUtils;

/**
 * Reads archives and model configurations with the classes of TorchServe's frontend.
 *
 * <p>Standard input: one path per line, of an archive, or of a YAML file. Standard output: one line of JSON each, with
 * what the server reads, or "error".
 */
public final class ArchiveJudge {
    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String path = lines.readLine(); path != null; path = lines.readLine()) {
            Map<String, Object> verdict = new TreeMap<>();
            try {
                File file = new File(path);
                if (path.endsWith(".yaml")) {
                    describe(ModelConfig.build(ArchiveUtils.readYamlFile(file)), verdict);
                } else {
                    ModelArchive archive =
                            ModelArchive.downloadModel(List.of("file://.*"), file.getParent(), file.getName());
                    Manifest.Model model = archive.getManifest().getModel();
                    if (model.getModelVersion() == null) {
                        model.setModelVersion("1.0"); // as ModelManager does
                    }
                    archive.validate();
                    verdict.put("name", archive.getModelName());
                    verdict.put("version", archive.getModelVersion());
                    verdict.put("handler", archive.getHandler());
                    verdict.put("runtime", archive.getManifest().getRuntime().getValue());
                    verdict.put("config_file", model.getConfigFile());
                    verdict.put("has_config", archive.getModelConfig() != null);
                    verdict.put("folder", archive.getModelDir().getCanonicalPath());
                }
            } catch (Throwable error) {
                verdict.put("error", String.valueOf(error));
            }
            System.out.println(new GsonBuilder().create().toJson(verdict));
            System.out.flush();
        }
    }

    private static void describe(ModelConfig config, Map<String, Object> verdict) {
        verdict.put("minWorkers", config.getMinWorkers());
        verdict.put("maxWorkers", config.getMaxWorkers());
        verdict.put("batchSize", config.getBatchSize());
        verdict.put("maxBatchDelay", config.getMaxBatchDelay());
        verdict.put("responseTimeout", config.getResponseTimeout());
        verdict.put("startupTimeout", config.getStartupTimeout());
        verdict.put("deviceType", config.getDeviceType().getDeviceType());
        verdict.put("parallelType", config.getParallelType().getParallelType());
        verdict.put("parallelLevel", config.getParallelLevel());
        verdict.put("maxRetryTimeoutInSec", config.getMaxRetryTimeoutInSec());
        verdict.put("clientTimeoutInMills", config.getClientTimeoutInMills());
        verdict.put("jobQueueSize", config.getJobQueueSize());
        verdict.put("useJobTicket", config.isUseJobTicket());
        verdict.put("sequenceMaxIdleMSec", config.getSequenceMaxIdleMSec());
        verdict.put("maxSequenceJobQueueSize", config.getMaxSequenceJobQueueSize());
        verdict.put("maxNumSequence", config.getMaxNumSequence());
        verdict.put("continuousBatching", config.isContinuousBatching());
        verdict.put("sequenceBatching", config.isSequenceBatching());
        verdict.put("asyncCommunication", config.isAsyncCommunication());
        verdict.put("useVenv", config.getUseVenv());
    }
}
