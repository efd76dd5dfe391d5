# For those who call node-gyp: the real build definition is CMakeLists.txt.
{
  "targets": [
    {
      "target_name": "cmake_shim",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake_build",
          "inputs": [],
          "outputs": ["<(INTERMEDIATE_DIR)/always-run"],
          "action": ["node", "scripts/build-native.cjs", "<(CONFIGURATION_NAME)"]
        }
      ]
    }
  ]
}
